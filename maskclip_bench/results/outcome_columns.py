"""The columns of an outcome table, read and checked: what each statistic is made of.

Shapes: S samples, S' measured ones, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

Statistic = Literal[
    "mean",
    "mean_per_class",
    "mean_ratio",
    "mean_of_columns",
    "roc_auc",
    "calibration_error",
    "geometric_mean",
    "worst_group",
    "multi_label_ap",
    "multi_label_ap_11",
    "coco_ap",
    "coco_ap50",
    "coco_ap75",
    "none",
]
"""How a metric follows from its outcome column (the column of the same name).

mean: the mean over the rows where it is not NaN. mean_per_class: the mean over classes of the
class means, classes taken from the column `label`. mean_ratio: the mean over classes of sum of
numerators / sum of denominators, which stand as lists [C], one entry a class, in the two columns
that `ratio_column_names` gives (mIoU: pixels in the intersection and the union of each class, image
by image); classes whose denominators are all zero are left out. mean_of_columns: the mean of the
means of several other outcome columns, `Metric.columns`. roc_auc: the column holds a score a row;
the value is the probability that a row of the greater `label` scores above one of the smaller,
ties counting half. none: it does not follow, so it has no interval.

The others take the columns that `Metric.columns` names:

calibration_error: confidence, hits (see `weighted.CalibrationError`). geometric_mean: logarithms of
what is averaged. worst_group: hits; the lowest mean of a group. multi_label_ap, multi_label_ap_11:
lists of scores and of labels (see `average_precision.MultiLabelAP`). coco_ap, coco_ap50,
coco_ap75: prefixes of the columns of detections and of their matches (see
`average_precision.CocoAP`).
"""

NUM_COLUMNS: dict[str, int] = {
    "calibration_error": 2,
    "geometric_mean": 1,
    "worst_group": 1,
    "multi_label_ap": 2,
    "multi_label_ap_11": 2,
    "coco_ap": 2,
    "coco_ap50": 2,
    "coco_ap75": 2,
}
"""Of the statistics that take a fixed number of columns."""

RANGE_TOLERANCE = 1e-6
"""How far rounding may carry a fraction out of 0..1."""

ID_COLUMNS = ("sample_id", "group")
"""Columns every outcome table has. Rows of one group were not drawn independently."""


def check_outcomes(outcomes: pd.DataFrame) -> None:
    """Hold an outcome table against its contract.

    Raises:
        ValueError: A column is missing, ids repeat, a row has no id, group or label, or there is
            no row.
    """
    missing = [column for column in ID_COLUMNS if column not in outcomes.columns]
    if missing:
        raise ValueError(
            f"The outcomes lack the columns {missing}. They need sample_id, group and one column "
            f"per metric; found {list(outcomes.columns)}."
        )
    if len(outcomes) == 0:
        raise ValueError("The outcomes have no row: nothing was measured.")
    for column in (*ID_COLUMNS, "label"):
        nothing = outcomes[column].isna().sum() if column in outcomes.columns else 0
        if nothing:
            raise ValueError(
                f"{nothing} of {len(outcomes)} rows of the outcomes have no {column!r}. Every row "
                "needs one."
            )
    if outcomes["sample_id"].duplicated().any():
        first = outcomes.loc[outcomes["sample_id"].duplicated(), "sample_id"].iloc[0]
        raise ValueError(f"sample_id {first!r} stands twice in the outcomes; ids must be unique.")


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


def fractions(outcomes: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    """One outcome column of fractions from 0 to 1 [S]; NaN where a row was not measured.

    Raises:
        ValueError: As `outcome_values`, or a value is no fraction.
    """
    values = outcome_values(outcomes, name)
    wrong = (values < -RANGE_TOLERANCE) | (values > 1 + RANGE_TOLERANCE)
    if wrong.any():
        raise ValueError(
            f"The outcome column {name!r} holds {values[wrong][0]:g}, and outcomes are fractions "
            "from 0 to 1. Divide percentages by 100; declare scores as roc_auc."
        )
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
    rows, measured = measured_rows(outcomes, names)
    numerators, denominators = (stacked(rows, name, np.float64) for name in names)
    if numerators.shape != denominators.shape:
        raise ValueError(
            f"{names}: lists of {numerators.shape[1]} and {denominators.shape[1]} entries; they "
            "need one entry a class, in both columns alike."
        )
    if (numerators < 0).any() or (numerators > denominators * (1 + RANGE_TOLERANCE)).any():
        raise ValueError(f"{names}: a numerator is below 0 or above its denominator.")
    return numerators, denominators, measured


def measured_rows(
    outcomes: pd.DataFrame, names: Sequence[str]
) -> tuple[pd.DataFrame, npt.NDArray[np.bool_]]:
    """The rows that hold lists in all of the columns, and which those are [S].

    Raises:
        ValueError: A column is missing, there is no such row, or one has only some of the lists.
    """
    missing = [name for name in names if name not in outcomes.columns]
    if missing:
        raise ValueError(f"The outcomes need the list columns {list(names)}; missing {missing}.")
    present = outcomes[list(names)].notna().to_numpy(dtype=bool)
    measured = np.asarray(present.all(axis=1), dtype=np.bool_)
    if not measured.any():
        raise ValueError(f"The outcome columns {list(names)} hold no list: nothing was measured.")
    torn = int((present.any(axis=1) & ~measured).sum())
    if torn:
        raise ValueError(
            f"{torn} rows hold only some of the lists {list(names)}; a row has all of them, or "
            "none where it was not measured."
        )
    return outcomes[measured], measured


def stacked(rows: pd.DataFrame, name: str, kind: type) -> npt.NDArray[Any]:
    """A list column [S', C], finite.

    Raises:
        ValueError: The lists are of different lengths, or hold what is no finite number.
    """
    try:
        values: npt.NDArray[Any] = np.stack([np.asarray(row, dtype=kind) for row in rows[name]])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r}: every measured row needs a list of one length.") from error
    if values.ndim != 2:
        raise ValueError(f"{name!r}: every measured row needs a list, one entry a class.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name!r} holds numbers that are not finite.")
    return values


def ratio_parts(
    outcomes: pd.DataFrame, name: str, statistic: Statistic, columns: Sequence[str] = ()
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """What `ratio_outcomes` gives, for "mean_of_columns" too: one ratio a column.

    Raises:
        ValueError: A column is missing or holds nothing.
    """
    if statistic != "mean_of_columns":
        return ratio_outcomes(outcomes, name)
    values = np.stack([fractions(outcomes, column) for column in columns], axis=1)  # [S, C]
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
