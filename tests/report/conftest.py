"""Records of every kind, small: two rows, classification, retrieval, segmentation, detection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.results.records import Record, RecordStore
from tests.report.measurements import MADE, saver


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "records")


@pytest.fixture
def save(store: RecordStore) -> Callable[..., Record]:
    """Record a measurement as a cell."""
    return saver(store)


@pytest.fixture
def two_rows(store: RecordStore, save: Callable[..., Record]) -> RecordStore:
    """Rows "first" (8 wrong) and "second" (2 wrong) on all four tasks."""
    for task, make in MADE.items():
        save("first", task, make(8 if task.startswith("knn") else 3))
        save("second", task, make(2))
    return store
