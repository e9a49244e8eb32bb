"""What a protocol returns: metrics as fractions, and the per-sample outcomes behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import pandas as pd

from maskclip_bench.results.declared_statistics import is_weighted, weighted_statistic
from maskclip_bench.results.outcome_columns import (
    NUM_COLUMNS,
    Statistic,
    auc_scores,
    check_outcomes,
    fractions,
    mean_ratio,
    outcome_labels,
    placements,
    ratio_parts,
)

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
        columns: Outcome columns that the statistic is made of, where it is not that of the name.
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
        number, wanted = len(self.columns), NUM_COLUMNS.get(self.statistic, 0)
        if (not number) if self.statistic == "mean_of_columns" else number != wanted:
            raise ValueError(
                f"The statistic {self.statistic!r} came with the columns {list(self.columns)}. "
                f"mean_of_columns needs some; {self.statistic!r} takes {wanted}."
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


def statistic_value(
    outcomes: pd.DataFrame, name: str, statistic: Statistic, columns: Sequence[str] = ()
) -> float | None:
    """The statistic of the metric `name` over its outcomes; None for the statistic "none".

    Raises:
        ValueError: A column that the statistic needs is missing, or holds only NaN.
    """
    if statistic == "none":
        return None
    if is_weighted(statistic):
        return weighted_statistic(outcomes, name, statistic, columns).value
    if statistic in ("mean_ratio", "mean_of_columns"):
        numerators, denominators, _ = ratio_parts(outcomes, name, statistic, columns)
        return float(mean_ratio(numerators.sum(axis=0), denominators.sum(axis=0)))
    if statistic == "roc_auc":
        positive, negative, _, _ = auc_scores(outcomes, name)
        below, ties = placements(positive, negative)
        return float((below + ties / 2).mean() / len(negative))
    values = fractions(outcomes, name)
    measured = ~np.isnan(values)
    if statistic == "mean":
        return float(values[measured].mean())
    labels = outcome_labels(outcomes, name)[measured]
    return float(pd.Series(values[measured]).groupby(labels).mean().mean())


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
