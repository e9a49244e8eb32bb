"""knn segmentation: scores that are known in advance."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.errors import ConfigError
from maskclip_bench.tasks.protocols.knn_segmentation import KnnSegmentation

from .scenes import context, write_scenes


def test_run__colours_are_easy(tmp_path: Path) -> None:
    protocol = KnnSegmentation()
    write_scenes(tmp_path / "halves")
    measurement = protocol.run(context(tmp_path, protocol, classes="classes.json"))
    assert measurement.metrics["mean_iou"].value > 0.85
    assert measurement.metrics["thing_mean_iou"].value > 0.85
    assert set(measurement.details["class_iou"]) <= {"blue", "red", "green"}
    assert len(measurement.outcomes) == 4
    labelled = sum(sum(row) for row in measurement.outcomes["pixel_accuracy.denominator"])
    assert labelled == 4 * 88 * 96


def test_run__no_class_list(tmp_path: Path) -> None:
    write_scenes(tmp_path / "halves")
    with pytest.raises(ConfigError, match=r"declares no classes for.*Set reader\.classes"):
        KnnSegmentation().run(context(tmp_path, KnnSegmentation()))
