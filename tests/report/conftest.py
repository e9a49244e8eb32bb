"""Records of every kind, small: two rows, classification, retrieval, segmentation, detection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.results.measurement import Measurement
from maskclip_bench.results.records import Cell, Record, RecordStore, measured_record
from tests.report.measurements import MADE


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "records")


@pytest.fixture
def save(store: RecordStore) -> Callable[..., Record]:
    """Record a measurement as a cell."""

    def save_cell(
        backbone: str, task: str, measurement: Measurement, *, seed: int = 0, weights: str = "w"
    ) -> Record:
        protocol, dataset = task.split("/")
        cell = Cell(
            backbone=backbone,
            seed=seed,
            protocol=protocol,
            dataset=dataset,
            world="real",
            cell_fingerprint="f",
        )
        record = measured_record(
            cell,
            measurement,
            fingerprints={"weights": weights},
            provenance={"time": "2026-01-02T03:04:05+00:00", "hardware": {"device": "cpu"}},
            protocol_title=protocol.replace("_", " ").capitalize(),
            num_resamples=200,
        )
        return store.save(record, measurement.outcomes)

    return save_cell


@pytest.fixture
def two_rows(store: RecordStore, save: Callable[..., Record]) -> RecordStore:
    """Rows "first" (8 wrong) and "second" (2 wrong) on all four tasks."""
    for task, make in MADE.items():
        save("first", task, make(8 if task.startswith("knn") else 3))
        save("second", task, make(2))
    return store
