"""Tiny shards, and the tiny recipe of `run_tiny.py`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from maskclip_bench.data.shapes import write_shape_shards

SCRIPT = Path(__file__).with_name("run_tiny.py")


def _load_script() -> ModuleType:
    name = "pretrain_run_tiny"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """`tiny_recipe`, `tiny_values`, `TINY_VIT`, `NUM_SAMPLES`."""
    return _load_script()


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    """A data root with `shapes/shapes-*.tar`."""
    root = tmp_path_factory.mktemp("data")
    write_shape_shards(root / "shapes", num_samples=tiny.NUM_SAMPLES, num_shards=2, size=36)
    return root
