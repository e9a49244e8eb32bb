from __future__ import annotations

from collections.abc import Callable

import pytest

from maskclip_bench.results.record_model import seal_of
from maskclip_bench.results.records import (
    Cell,
    MetricRecord,
    Record,
)

CELL = Cell(
    backbone="clip", protocol="knn", dataset="demo_objects", world="demo", cell_fingerprint="f"
)


def test_seal__does_not_depend_on_the_order_of_keys() -> None:
    assert seal_of({"a": 1, "b": 0.1, "seal": "x"}) == seal_of({"b": 0.1, "a": 1})
    assert seal_of({"a": 1}) != seal_of({"a": 2})


def test_record__ok_without_metrics_is_refused() -> None:
    with pytest.raises(ValueError, match="an ok record needs metrics"):
        Record(cell=CELL, status="ok")


def test_record__failed_with_a_score_is_refused(save: Callable[..., Record]) -> None:
    metrics = save("clip").metrics
    with pytest.raises(ValueError, match="a failed record has an error and no metric"):
        Record(cell=CELL, status="failed", metrics=metrics)


def test_metric__the_best_score_is_not_that_of_guessing() -> None:
    """Records of before say chance 0 of calibration errors."""
    old = {"value": 0.1, "higher_is_better": False, "chance_level": 0.0}
    assert MetricRecord.model_validate(old).chance_level is None
    assert MetricRecord.model_validate({**old, "chance_level": 0.49}).chance_level == 0.49
    assert MetricRecord.model_validate({**old, "higher_is_better": True}).chance_level == 0.0
