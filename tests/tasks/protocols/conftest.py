"""The small demo world of the dense protocols, drawn once."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.data.demo import prepare_demo
from tests.tasks.protocols.dense_world import SIZES


@pytest.fixture(scope="session")
def dense_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of the world; nothing is changed there."""
    root = tmp_path_factory.mktemp("dense_data")
    prepare_demo(root, sizes=SIZES, num_processes=1)
    return root


@pytest.fixture(scope="module")
def world(dense_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of this module's own, whose `data` is the world."""
    root = tmp_path_factory.mktemp("world")
    (root / "data").symlink_to(dense_data, target_is_directory=True)
    return root
