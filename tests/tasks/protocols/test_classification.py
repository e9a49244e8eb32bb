"""What all protocols of class scores share: right, collapsed, without labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskclip_bench.data.groups import Groups
from maskclip_bench.data.readers import open_dataset
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.results.measurement import statistic_value
from maskclip_bench.tasks.protocols.classification import (
    classification_result,
    columns_of,
    multi_label_result,
)
from tests.tasks.conftest import (
    CLASSIFICATION,
    BlindEncoder,
    CollapsedEncoder,
    ColourEncoder,
    MakeContext,
    captions_task,
    run,
    squares_task,
)


@pytest.mark.parametrize("protocol", CLASSIFICATION)
def test_classification__a_perfect_encoder_scores_one(
    protocol: str, make_context: MakeContext
) -> None:
    found = run(make_context(protocol, squares_task(), ColourEncoder()), protocol)
    primary = found.metrics[found.primary_metric]
    assert primary.value == 1.0
    assert primary.chance_level == pytest.approx(1 / 6)
    assert len(found.outcomes) == 24
    assert found.outcomes["group"].nunique() == 12
    assert found.outcomes["sample_id"].iloc[0] == "c0/0.png"


@pytest.mark.parametrize("protocol", [*CLASSIFICATION, "retrieval"])
def test_collapsed_model__scores_chance(protocol: str, make_context: MakeContext) -> None:
    task = captions_task() if protocol == "retrieval" else squares_task()
    found = run(make_context(protocol, task, CollapsedEncoder()), protocol)
    for name, metric in found.metrics.items():
        assert metric.value == pytest.approx(metric.chance_level), name


@pytest.mark.parametrize("protocol", ["linear_probe", "knn", "few_shot"])
def test_probes__work_without_a_text_tower(protocol: str, make_context: MakeContext) -> None:
    found = run(make_context(protocol, squares_task(), BlindEncoder()), protocol)
    assert found.metrics[found.primary_metric].value > 0.9


def test_classification__needs_labels(make_context: MakeContext) -> None:
    task = captions_task()
    task = task.model_copy(update={"protocols": {"zero_shot_classification": {"prompts": "x"}}})
    with pytest.raises(ConfigError, match="has no class labels"):
        run(
            make_context("zero_shot_classification", task, ColourEncoder()),
            "zero_shot_classification",
        )


def test_columns_of__a_label_of_no_class_is_refused(data_root: Path) -> None:
    dataset = open_dataset(squares_task().reader, "val", data_root)
    labels = np.array([0, -1, 2, 7])
    with pytest.raises(DataError, match=r"2 of 4 images have the label -1 or another one that is"):
        columns_of(labels, np.arange(6), dataset)
    assert columns_of(np.array([4, 2]), np.array([2, 4]), dataset).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("num_classes", "metric", "chance"),
    [(6, "mean_of_top1_and_top5", 0.5), (4, "mean_of_top1_and_top5", 0.625)],
)
def test_classification_result__chance_of_the_mean_of_top1_and_top5(
    num_classes: int, metric: Any, chance: float, data_root: Path
) -> None:
    dataset = open_dataset(squares_task().reader, "val", data_root)
    few = dataset.take([i for i, label in enumerate(dataset.need_labels()) if label < num_classes])
    found = classification_result(
        torch.zeros(len(few), num_classes), few, classes=np.arange(num_classes), primary=metric
    )
    assert found.metrics[metric].chance_level == pytest.approx(chance)
    assert found.metrics[metric].value == pytest.approx(chance)


def test_classification_result__a_metric_without_meaning(data_root: Path) -> None:
    dataset = open_dataset(squares_task().reader, "val", data_root)
    few = dataset.take([i for i, label in enumerate(dataset.need_labels()) if label < 2])
    with pytest.raises(ConfigError, match="top5_accuracy has no meaning with 2 classes"):
        classification_result(
            torch.zeros(len(few), 2), few, classes=np.arange(2), primary="top5_accuracy"
        )


def test_classification__outcomes_keep_the_confidence(make_context: MakeContext) -> None:
    for protocol in ("zero_shot_classification", "linear_probe", "knn"):
        outcomes = run(make_context(protocol, squares_task(), ColourEncoder()), protocol).outcomes
        right = outcomes["prediction"] == outcomes["label"]
        assert right.all()
        assert (outcomes["confidence"] == outcomes["truth_confidence"]).all(), protocol
        assert outcomes["confidence"].between(1 / 6, 1).all(), protocol


def test_classification_result__confidence_of_prediction_and_truth(data_root: Path) -> None:
    dataset = open_dataset(squares_task().reader, "val", data_root).take([0, 5])
    probabilities = torch.tensor([[0.7, 0.3, 0, 0, 0, 0], [0.6, 0.4, 0, 0, 0, 0]])
    found = classification_result(
        probabilities,
        dataset,
        classes=np.arange(6),
        primary="top1_accuracy",
        probabilities=probabilities,
    )
    assert found.outcomes["confidence"].tolist() == pytest.approx([0.7, 0.6])
    assert found.outcomes["truth_confidence"].tolist() == pytest.approx([0.7, 0.4])
    without = classification_result(
        probabilities, dataset, classes=np.arange(6), primary="top1_accuracy"
    )
    assert "confidence" not in without.outcomes


def test_classification_result__worst_group(data_root: Path) -> None:
    dataset = open_dataset(squares_task().reader, "val", data_root)
    scores = torch.eye(6)[torch.from_numpy(dataset.need_labels())]
    scores[0] = 0
    found = classification_result(
        scores, dataset, classes=np.arange(6), primary="worst_group_accuracy"
    )
    assert found.metrics["worst_group_accuracy"].value == pytest.approx((1 + 1 / 6) / 2)
    again = statistic_value(found.outcomes, "m", "worst_group", ["top1_accuracy"])
    assert again == pytest.approx(found.metrics["worst_group_accuracy"].value)
    assert found.metrics["worst_group_accuracy"].statistic == "worst_group"


def test_multi_label_result__map_with_its_chance(data_root: Path) -> None:
    plain = open_dataset(squares_task().reader, "val", data_root)
    labels = np.zeros((len(plain), 6), dtype=np.int8)
    labels[np.arange(len(plain)), plain.need_labels()] = 1
    labels[0, 1] = -1
    several = replace(plain, labels=None, multi_labels=labels)
    perfect = torch.from_numpy(labels.clip(0).astype(np.float32))
    found = multi_label_result(perfect, several, primary="mean_average_precision")
    assert {name: metric.value for name, metric in found.metrics.items()} == {
        "mean_average_precision": 1.0,
        "mean_average_precision_11_point": 1.0,
    }
    equal = multi_label_result(torch.zeros(24, 6), several, primary="mean_average_precision")
    for metric in equal.metrics.values():
        assert metric.value == pytest.approx(metric.chance_level)
    assert list(found.outcomes["labels"].iloc[0]) == labels[0].tolist()
    for name, metric in found.metrics.items():
        again = statistic_value(found.outcomes, name, metric.statistic, metric.columns)
        assert again == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="top1_accuracy is for images of one class"):
        multi_label_result(perfect, several, primary="top1_accuracy")


def test_classification_result__worst_group_needs_groups(data_root: Path) -> None:
    reader = squares_task().reader.model_copy(update={"groups": Groups()})
    dataset = open_dataset(reader, "val", data_root)
    scores = torch.eye(6)[torch.from_numpy(dataset.need_labels())]
    with pytest.raises(ConfigError, match=r"has no groups: each image is one of its own"):
        classification_result(scores, dataset, classes=np.arange(6), primary="worst_group_accuracy")
