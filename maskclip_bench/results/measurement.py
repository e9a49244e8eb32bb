"""What a protocol returns: metrics as fractions, and the per-sample outcomes behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

Statistic = Literal["mean", "mean_per_class", "mean_ratio", "none"]
"""How a metric follows from its outcome column (the column of the same name).

mean: the mean over the rows where it is not NaN. mean_per_class: the mean over classes of the
class means, classes taken from the column `label`. mean_ratio: the mean over classes of sum of
numerators / sum of denominators, which stand as lists [C], one entry a class, in the two columns
that `ratio_column_names` gives (mIoU: pixels in the intersection and the union of each class, image
by image); classes whose denominators are all zero are left out. none: it does not (an mAP, an
AUC), so it has no interval.
"""

ID_COLUMNS = ("sample_id", "group")
"""Columns every outcome table has. Rows of one group were not drawn independently."""

TOLERANCE = 1e-4
"""How far a metric may be from the statistic of its outcomes (features may be stored in fp16)."""


@dataclass(frozen=True)
class Metric:
    """One number of a measurement.

    Attributes:
        value: A fraction, 0 to 1; tables multiply by 100 once.
        higher_is_better: Direction, so that "best" is never guessed.
        chance_level: Score of guessing, a fraction; None if unknown.
        statistic: How the value follows from the outcome column of the same name.

    Raises:
        ValueError: The value or the chance level is not a fraction, or the statistic is unknown.
    """

    value: float
    higher_is_better: bool = True
    chance_level: float | None = None
    statistic: Statistic = "mean"

    def __post_init__(self) -> None:
        if self.statistic not in get_args(Statistic):
            allowed = ", ".join(get_args(Statistic))
            raise ValueError(f"{self.statistic!r} is not a statistic. Use one of {allowed}.")
        object.__setattr__(self, "value", as_fraction(self.value, what="The value of a metric"))
        if self.chance_level is not None:
            level = as_fraction(self.chance_level, what="A chance level")
            object.__setattr__(self, "chance_level", level)


@dataclass(frozen=True)
class Measurement:
    """The result of a protocol on one data set for one backbone.

    Attributes:
        metrics: Name -> metric, names as in the glossary (`top1_accuracy`).
        primary_metric: The one a table shows when it is not told which.
        outcomes: One row a sample: `sample_id` (str, unique), `group` (str; images that share a
            drawing share a group; may equal `sample_id`), one float column per metric (NaN where
            it does not apply), and optionally `label` and `prediction`.
        preset: Name of the protocol's preset, e.g. "clip_7_prompts".
        preset_version: Raised when a preset changes its meaning.
        details: What else is needed to trust the number: chosen hyperparameters, hashes of the
            transform, the templates, the data. JSON-like.
        budget: What the run was allowed to spend (samples, epochs). Empty = everything.

    Raises:
        ValueError: The parts do not fit each other; says which.
    """

    metrics: dict[str, Metric]
    primary_metric: str
    outcomes: pd.DataFrame
    preset: str
    preset_version: int = 1
    details: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.primary_metric not in self.metrics:
            raise ValueError(
                f"The primary metric {self.primary_metric!r} is not among the metrics "
                f"({', '.join(sorted(self.metrics))})."
            )
        check_outcomes(self.outcomes)
        for name, metric in self.metrics.items():
            expected = statistic_value(self.outcomes, name, metric.statistic)
            if expected is not None and abs(expected - metric.value) > TOLERANCE:
                raise ValueError(
                    f"{name} is {metric.value:.6f}, but the {metric.statistic} of its outcome "
                    f"column is {expected:.6f}. Declare the statistic that makes it, or 'none'."
                )


def check_outcomes(outcomes: pd.DataFrame) -> None:
    """Hold an outcome table against its contract.

    Raises:
        ValueError: A column is missing, ids repeat, or there is no row.
    """
    missing = [column for column in ID_COLUMNS if column not in outcomes.columns]
    if missing:
        raise ValueError(
            f"The outcomes lack the columns {missing}. They need sample_id, group and one column "
            f"per metric; found {list(outcomes.columns)}."
        )
    if len(outcomes) == 0:
        raise ValueError("The outcomes have no row: nothing was measured.")
    if outcomes["sample_id"].duplicated().any():
        first = outcomes.loc[outcomes["sample_id"].duplicated(), "sample_id"].iloc[0]
        raise ValueError(f"sample_id {first!r} stands twice in the outcomes; ids must be unique.")


def statistic_value(outcomes: pd.DataFrame, column: str, statistic: Statistic) -> float | None:
    """The statistic of one outcome column; None for the statistic "none".

    Raises:
        ValueError: The column (or `label`, for mean_per_class) is missing or holds only NaN.
    """
    if statistic == "none":
        return None
    if statistic == "mean_ratio":
        numerators, denominators, _ = ratio_outcomes(outcomes, column)
        return float(mean_ratio(numerators.sum(axis=0), denominators.sum(axis=0)))
    if column not in outcomes.columns:
        raise ValueError(
            f"No outcome column {column!r} for a metric of statistic {statistic!r}; found "
            f"{list(outcomes.columns)}."
        )
    values = outcomes[column].to_numpy(dtype=np.float64)
    measured = ~np.isnan(values)
    if not measured.any():
        raise ValueError(f"The outcome column {column!r} holds only NaN.")
    if statistic == "mean":
        return float(values[measured].mean())
    if "label" not in outcomes.columns:
        raise ValueError(f"{column!r} is a mean per class, so the outcomes need a column 'label'.")
    labels = outcomes["label"].to_numpy()[measured]
    return float(pd.Series(values[measured]).groupby(labels).mean().mean())


def ratio_column_names(metric: str) -> tuple[str, str]:
    """Names of the two list columns of a metric of statistic "mean_ratio"."""
    return f"{metric}.numerator", f"{metric}.denominator"


def ratio_outcomes(
    outcomes: pd.DataFrame, metric: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Numerators [S', C] and denominators [S', C] of the measured rows, and which those are [S].

    Rows that hold None were not measured.

    Raises:
        ValueError: A column is missing, the lists are of different lengths, or nothing is measured.
    """
    names = ratio_column_names(metric)
    missing = [name for name in names if name not in outcomes.columns]
    if missing:
        raise ValueError(
            f"{metric!r} is a mean ratio, so the outcomes need the list columns {list(names)}; "
            f"missing {missing}."
        )
    measured = outcomes[names[0]].notna().to_numpy(dtype=bool)
    if not measured.any():
        raise ValueError(f"The outcome column {names[0]!r} holds no list: nothing was measured.")
    try:
        numerators, denominators = (
            np.stack([np.asarray(row, dtype=np.float64) for row in outcomes[name][measured]])
            for name in names
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{names}: every measured row needs a list of one length.") from error
    if numerators.shape != denominators.shape or numerators.ndim != 2:
        raise ValueError(
            f"{names}: lists of {numerators.shape} and {denominators.shape}; they need one entry "
            "a class, in both columns alike."
        )
    return numerators, denominators, measured


def mean_ratio(
    numerators: npt.NDArray[np.float64], denominators: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Mean over the last axis (classes) of numerator / denominator where the latter is not 0."""
    present = denominators > 0
    ratios = np.divide(numerators, denominators, out=np.zeros_like(numerators), where=present)
    return np.asarray(ratios.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1))


def as_fraction(value: float, *, what: str) -> float:
    """`value` if it lies in 0..1 (up to rounding, which is cut off).

    Raises:
        ValueError: It does not.
    """
    number = float(value)
    if not math.isfinite(number) or not -1e-6 <= number <= 1 + 1e-6:
        raise ValueError(
            f"{what} is {number:g}; records hold fractions from 0 to 1. "
            "Divide percentages by 100 where they are read."
        )
    return min(max(number, 0.0), 1.0)
