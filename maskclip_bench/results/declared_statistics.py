"""From the name of a statistic, as records have it, to the code that knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from maskclip_bench.results.average_precision import CocoAP, MultiLabelAP
from maskclip_bench.results.outcome_columns import NUM_COLUMNS, Statistic
from maskclip_bench.results.weighted import CalibrationError, GeometricMean, Weighted, WorstGroup

_MAKERS: dict[str, Callable[[pd.DataFrame, Sequence[str]], Weighted]] = {
    "calibration_error": CalibrationError.of,
    "geometric_mean": GeometricMean.of,
    "worst_group": WorstGroup.of,
    "multi_label_ap": MultiLabelAP.of,
    "multi_label_ap_11": MultiLabelAP.of_11_points,
    "coco_ap": CocoAP.of,
    "coco_ap50": CocoAP.of_50,
    "coco_ap75": CocoAP.of_75,
}


def is_weighted(statistic: Statistic) -> bool:
    """Whether `weighted_statistic` knows it; the others are means and ROC AUC."""
    return statistic in _MAKERS


def weighted_statistic(
    outcomes: pd.DataFrame, name: str, statistic: Statistic, columns: Sequence[str]
) -> Weighted:
    """The statistic of a metric as a function of the weights of groups.

    Args:
        outcomes: See `Measurement`.
        name: Of the metric, for messages.
        statistic: One that `is_weighted`.
        columns: See `outcome_columns.Statistic`.

    Raises:
        ValueError: A column is missing, or holds nothing or what the statistic is not made of.
    """
    if len(columns) != NUM_COLUMNS[statistic]:
        raise ValueError(
            f"{name}: a {statistic} takes {NUM_COLUMNS[statistic]} columns; got {list(columns)}."
        )
    try:
        return _MAKERS[statistic](outcomes, columns)
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{name}: its outcome columns {list(columns)} are not those of a {statistic} ({error})."
        ) from error
