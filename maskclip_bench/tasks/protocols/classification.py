"""What every protocol that ends in class scores shares: outcomes, metrics, chance levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.results.measurement import Metric
from maskclip_bench.results.outcome_columns import Statistic
from maskclip_bench.tasks.metrics import (
    Floats,
    Integers,
    check_finite,
    label_ranks,
    mean_average_precision,
    mean_per_class,
    roc_auc,
    worst_group,
)
from maskclip_bench.tasks.metrics import predictions as best_classes

ClassificationMetric = Literal[
    "top1_accuracy",
    "top5_accuracy",
    "mean_per_class_accuracy",
    "mean_of_top1_and_top5",
    "roc_auc",
    "worst_group_accuracy",
    "mean_average_precision",
    "mean_average_precision_11_point",
]
"""Primary metrics that a data set may ask for; the last two are for images of several classes."""

POINTS = {"mean_average_precision": None, "mean_average_precision_11_point": 11}
"""See `metrics.average_precision`. VOC2007's 11 points are those of its own kit; ELEVATER's code
takes precision 1 at recall 0 in addition, which gives at most 1/11 more."""

AP_STATISTICS: dict[str, Statistic] = {
    "mean_average_precision": "multi_label_ap",
    "mean_average_precision_11_point": "multi_label_ap_11",
}

DECIMALS = 6
"""Of the confidences that outcomes keep."""

CLASSIFICATION_LABELS = {
    "top1_accuracy": "top-1",
    "top5_accuracy": "top-5",
    "mean_per_class_accuracy": "mean per class",
    "worst_group_accuracy": "worst group",
    "mean_average_precision": "mAP",
    "mean_average_precision_11_point": "mAP, 11 points",
}
"""What tables call the metrics."""


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """Metrics and their outcomes, ready for a measurement."""

    metrics: dict[str, Metric]
    outcomes: pd.DataFrame


def classification_result(
    scores: Tensor,
    dataset: Dataset,
    *,
    classes: Integers,
    primary: ClassificationMetric,
    probabilities: Tensor | None = None,
) -> ClassificationResult:
    """Metrics of class scores on a labelled split.

    Args:
        scores: [N, C]; one column for each of `classes`.
        dataset: The split, N images.
        classes: Label of each column, ascending.
        primary: The metric that the data set is reported with; computed beside the usual ones.
        probabilities: [N, C], where the scores stand for some; the outcomes then keep that of the
            prediction (`confidence`) and that of the truth (`truth_confidence`).

    Raises:
        ConfigError: The primary metric has no meaning with this number of classes.
        DataError: A label of the split is none of `classes`.
        NonFiniteError: Scores are NaN or infinite.
    """
    labels = dataset.need_labels()
    num_classes = len(classes)
    columns = torch.from_numpy(columns_of(labels, classes, dataset)).to(scores.device)
    ranks = label_ranks(scores, columns)
    top1 = ranks.hits(1)
    outcomes = pd.DataFrame(
        {
            "sample_id": dataset.sample_ids,
            "group": dataset.groups,
            "label": labels,
            "prediction": classes[best_classes(scores)],
            "top1_accuracy": top1,
            "mean_per_class_accuracy": top1,
        }
    )
    if probabilities is not None:
        for name, values in confidences(probabilities, columns).items():
            outcomes[name] = values
    chance = 1 / num_classes
    metrics = {
        "top1_accuracy": Metric(float(top1.mean()), chance_level=chance),
        "mean_per_class_accuracy": Metric(
            mean_per_class(top1, labels), chance_level=chance, statistic="mean_per_class"
        ),
    }
    if num_classes > 5:
        top5 = ranks.hits(5)
        outcomes["top5_accuracy"] = top5
        metrics["top5_accuracy"] = Metric(float(top5.mean()), chance_level=5 * chance)
    if primary == "mean_of_top1_and_top5":
        both = (top1 + ranks.hits(5)) / 2
        outcomes[primary] = both
        metrics[primary] = Metric(
            float(both.mean()), chance_level=(chance + min(1.0, 5 * chance)) / 2
        )
    if primary == "roc_auc":
        if num_classes != 2:
            raise ConfigError(
                f"{dataset.name}: metric roc_auc needs two classes, the data has {num_classes}. "
                "Use top1_accuracy or mean_per_class_accuracy."
            )
        difference = (scores[:, 1] - scores[:, 0]).double().cpu().numpy()
        value = roc_auc(difference, labels == classes[1])
        outcomes[primary] = difference
        metrics[primary] = Metric(value, chance_level=0.5, statistic="roc_auc")
    if primary == "worst_group_accuracy":
        _, value = worst_group(top1, _need_groups(dataset))
        metrics[primary] = Metric(
            value, chance_level=chance, statistic="worst_group", columns=("top1_accuracy",)
        )
    if primary not in metrics:
        raise ConfigError(
            f"{dataset.name}: metric {primary} has no meaning with {num_classes} classes. "
            "Use top1_accuracy."
        )
    return ClassificationResult(metrics=metrics, outcomes=outcomes)


def _need_groups(dataset: Dataset) -> list[str]:
    """The group of each image.

    Raises:
        ConfigError: Each is one of its own.
    """
    if len(set(dataset.groups)) == len(dataset) > 1:
        raise ConfigError(
            f"{dataset.name} ({dataset.split}) has no groups: each image is one of its own, so the "
            "worst is 0 or 1. Declare `groups` of the reader, or use top1_accuracy."
        )
    return dataset.groups


def confidences(probabilities: Tensor, columns: Tensor) -> dict[str, Floats]:
    """Outcome columns of class probabilities: of the prediction, and of the truth.

    Args:
        probabilities: [N, C].
        columns: The column of the truth, int64 [N].
    """
    check_finite(probabilities, "probabilities")
    found = {
        "confidence": probabilities.amax(dim=1),
        "truth_confidence": probabilities.gather(1, columns[:, None])[:, 0],
    }
    return {name: values.double().cpu().numpy().round(DECIMALS) for name, values in found.items()}


def multi_label_result(
    scores: Tensor, dataset: Dataset, *, primary: ClassificationMetric
) -> ClassificationResult:
    """Metrics of class scores on a split of images with several classes.

    Chance is the mean share of images that show a class. The outcomes keep all scores (in float32)
    and labels as lists, from which the average precision of any resample of images is made.

    Args:
        scores: [N, C].
        dataset: The split, N images.
        primary: One of `POINTS`.

    Raises:
        ConfigError: The metric is for images of one class.
        DataError: A class occurs in no image.
        NonFiniteError: Scores are NaN or infinite.
    """
    labels = dataset.need_multi_labels()
    if primary not in POINTS:
        raise ConfigError(
            f"{dataset.name}: metric {primary} is for images of one class, and these have several. "
            f"Use {' or '.join(POINTS)}."
        )
    kept = scores.float().cpu().numpy()
    values = kept.astype(np.float64)
    outcomes = pd.DataFrame(
        {
            "sample_id": dataset.sample_ids,
            "group": dataset.groups,
            "scores": list(kept),
            "labels": list(labels),
        }
    )
    scored = labels >= 0
    chance = float(((labels == 1).sum(axis=0) / np.maximum(scored.sum(axis=0), 1)).mean())
    metrics = {
        name: Metric(
            mean_average_precision(values, labels, points=points)[0],
            chance_level=chance,
            statistic=AP_STATISTICS[name],
            columns=("scores", "labels"),
        )
        for name, points in POINTS.items()
    }
    return ClassificationResult(metrics=metrics, outcomes=outcomes)


def columns_of(labels: Integers, classes: Integers, dataset: Dataset) -> Integers:
    """The column of each label among `classes` (ascending), int64 [N].

    Raises:
        DataError: A label is none of them.
    """
    wrong = labels[~np.isin(labels, classes)]
    if len(wrong):
        raise DataError(
            f"{dataset.name} ({dataset.split}): {len(wrong)} of {len(labels)} images have the "
            f"label {wrong[0]} or another one that is none of the {len(classes)} classes. Correct "
            "the labels, or give images without a class no place in the split."
        )
    return classes.searchsorted(labels).astype(np.int64)
