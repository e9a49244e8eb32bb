from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.records import Cell, Record, RecordStore, measured_record

NUM_SAMPLES = 40


def outcome_table(values: Mapping[str, np.ndarray], **columns: object) -> pd.DataFrame:
    length = len(next(iter(values.values())))
    ids = [f"image{i:03d}" for i in range(length)]
    table = {"sample_id": ids, "group": [f"drawing{i // 4}" for i in range(length)]}
    return pd.DataFrame({**table, **values, **columns})


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "records")


@pytest.fixture
def save(store: RecordStore) -> Callable[..., Record]:
    """Record a cell whose first `hits` of 40 samples are right."""

    def save_cell(
        backbone: str,
        task: str = "knn/demo_objects",
        hits: int = 20,
        *,
        seed: int = 0,
        world: str = "demo",
        metric: str = "top1_accuracy",
        preset: str = "dino_knn",
        higher_is_better: bool = True,
        chance_level: float | None = 0.1,
        budget: dict[str, object] | None = None,
        task_version: int = 1,
        statistic: str = "mean",
        fingerprint: str = "f",
    ) -> Record:
        outcomes = outcome_table({metric: (np.arange(NUM_SAMPLES) < hits).astype(float)})
        measurement = Measurement(
            metrics={
                metric: Metric(
                    hits / NUM_SAMPLES,
                    higher_is_better=higher_is_better,
                    chance_level=chance_level,
                    statistic=statistic,  # type: ignore[arg-type]
                )
            },
            primary_metric=metric,
            outcomes=outcomes,
            preset=preset,
            budget=budget or {},
        )
        protocol, dataset = task.split("/")
        cell = Cell(
            backbone=backbone,
            seed=seed,
            protocol=protocol,
            dataset=dataset,
            world=world,  # type: ignore[arg-type]
            task_version=task_version,
            cell_fingerprint=fingerprint,
        )
        return store.save(measured_record(cell, measurement, num_resamples=200), outcomes)

    return save_cell
