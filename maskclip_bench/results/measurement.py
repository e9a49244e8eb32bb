"""What a protocol returns: metrics as fractions, and the per-sample outcomes behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

Statistic = Literal["mean", "mean_per_class", "mean_ratio", "mean_of_columns", "roc_auc", "none"]
"""How a metric follows from its outcome column (the column of the same name).

mean: the mean over the rows where it is not NaN. mean_per_class: the mean over classes of the
class means, classes taken from the column `label`. mean_ratio: the mean over classes of sum of
numerators / sum of denominators, which stand as lists [C], one entry a class, in the two columns
that `ratio_column_names` gives (mIoU: pixels in the intersection and the union of each class, image
by image); classes whose denominators are all zero are left out. mean_of_columns: the mean of the
means of several other outcome columns, `Metric.columns`. roc_auc: the column holds a score a row;
the value is the probability that a row of the greater `label` scores above one of the smaller,
ties counting half. none: it does not follow (an mAP), so it has no interval.
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
        columns: Outcome columns that are averaged, for the statistic "mean_of_columns".
        label: What a table calls the metric ("top-1"); None = its name.

    Raises:
        ValueError: The value or the chance level is not a fraction, or the statistic is unknown or
            lacks its columns.
    """

    value: float
    higher_is_better: bool = True
    chance_level: float | None = None
    statistic: Statistic = "mean"
    columns: tuple[str, ...] = ()
    label: str | None = None

    def __post_init__(self) -> None:
        if self.statistic not in get_args(Statistic):
            allowed = ", ".join(get_args(Statistic))
            raise ValueError(f"{self.statistic!r} is not a statistic. Use one of {allowed}.")
        if (self.statistic == "mean_of_columns") != bool(self.columns):
            raise ValueError(
                f"The statistic {self.statistic!r} came with the columns {list(self.columns)}. "
                "mean_of_columns needs them; the others take none."
            )
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
            expected = statistic_value(self.outcomes, name, metric.statistic, metric.columns)
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


def statistic_value(
    outcomes: pd.DataFrame, name: str, statistic: Statistic, columns: Sequence[str] = ()
) -> float | None:
    """The statistic of the metric `name` over its outcomes; None for the statistic "none".

    Raises:
        ValueError: A column that the statistic needs is missing, or holds only NaN.
    """
    if statistic == "none":
        return None
    if statistic in ("mean_ratio", "mean_of_columns"):
        numerators, denominators, _ = ratio_parts(outcomes, name, statistic, columns)
        return float(mean_ratio(numerators.sum(axis=0), denominators.sum(axis=0)))
    if statistic == "roc_auc":
        positive, negative, _, _ = auc_scores(outcomes, name)
        below, ties = placements(positive, negative)
        return float((below + ties / 2).mean() / len(negative))
    values = outcome_values(outcomes, name)
    measured = ~np.isnan(values)
    if statistic == "mean":
        return float(values[measured].mean())
    labels = outcome_labels(outcomes, name)[measured]
    return float(pd.Series(values[measured]).groupby(labels).mean().mean())


def outcome_values(outcomes: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    """One outcome column [S]; NaN where a row was not measured.

    Raises:
        ValueError: It is missing, holds only NaN or no numbers, or an infinite one.
    """
    if name not in outcomes.columns:
        raise ValueError(
            f"No outcome column {name!r} for a metric of that name; found {list(outcomes.columns)}."
        )
    try:
        values = outcomes[name].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The outcome column {name!r} holds no numbers.") from error
    if np.isnan(values).all():
        raise ValueError(f"The outcome column {name!r} holds only NaN.")
    if np.isinf(values).any():
        raise ValueError(f"The outcome column {name!r} holds an infinite number.")
    return values


def outcome_labels(outcomes: pd.DataFrame, name: str) -> npt.NDArray[Any]:
    """The column `label` [S].

    Raises:
        ValueError: There is none.
    """
    if "label" not in outcomes.columns:
        raise ValueError(f"{name!r} is made class by class: the outcomes need a column 'label'.")
    return outcomes["label"].to_numpy()


def auc_scores(
    outcomes: pd.DataFrame, name: str
) -> tuple[
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.bool_],
    npt.NDArray[np.bool_],
]:
    """Scores of the positive rows [P] and of the negative ones [N], and which rows those are [S].

    Raises:
        ValueError: There are not two labels among the measured rows.
    """
    scores = outcome_values(outcomes, name)
    labels = outcome_labels(outcomes, name)
    measured = ~np.isnan(scores)
    names = np.unique(labels[measured])
    if len(names) != 2:
        raise ValueError(f"{name!r} needs two labels among its rows; found {len(names)}.")
    positive, negative = measured & (labels == names[1]), measured & (labels == names[0])
    return scores[positive], scores[negative], positive, negative


def placements(
    scores: npt.NDArray[np.float64], others: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """How many of `others` lie below each of `scores`, and how many tie with it."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left")
    not_above = np.searchsorted(ordered, scores, side="right")
    return below.astype(np.float64), (not_above - below).astype(np.float64)


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


def ratio_parts(
    outcomes: pd.DataFrame, name: str, statistic: Statistic, columns: Sequence[str] = ()
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """What `ratio_outcomes` gives, for "mean_of_columns" too: one ratio a column.

    Raises:
        ValueError: A column is missing or holds nothing.
    """
    if statistic != "mean_of_columns":
        return ratio_outcomes(outcomes, name)
    values = np.stack([outcome_values(outcomes, column) for column in columns], axis=1)  # [S, C]
    present = ~np.isnan(values)
    measured = np.asarray(present.any(axis=1), dtype=np.bool_)
    numerators = np.where(present, values, 0.0)[measured]
    return numerators, present[measured].astype(np.float64), measured


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
