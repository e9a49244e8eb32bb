"""For all tests: no user's settings, no network, one thread; a tiny recipe and its data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from maskclip_bench import content_hash, data_files, runtime
from tests.files import module_of

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hugging Face libraries must not try to reach their servers from a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hashes that tests remember go to a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(content_hash.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the shipped declarations and the default workspace, whatever the shell says."""
    for name in (
        data_files.CATALOGUE_VARIABLE,
        runtime.WORKSPACE_VARIABLE,
        runtime.DATA_VARIABLE,
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """`pretrain/run_tiny.py`: `tiny_recipe`, `tiny_values`, `TINY_VIT`, `NUM_SAMPLES`."""
    return module_of("tests/pretrain/run_tiny.py", "pretrain_run_tiny")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    """A data root with `shapes/shapes-*.tar`, which the tiny recipe trains on."""
    from maskclip_bench.data.shapes import write_shape_shards

    root = tmp_path_factory.mktemp("data")
    write_shape_shards(root / "shapes", num_samples=tiny.NUM_SAMPLES, num_shards=2, size=36)
    return root
