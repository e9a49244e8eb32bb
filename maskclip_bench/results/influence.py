"""How much each group of samples moves a score, and fast resamples of scores from it.

The influence of a group is the derivative of the statistic with respect to the group's weight
(Hampel 1974; the infinitesimal jackknife, Efron 1982). A resample that gives every group the weight
0 or 2 with equal chance (the double-or-nothing bootstrap, Owen and Eckles 2012, Ann. Appl. Stat. 6)
then is the score plus a sum of influences with random signs. Signs are bits, and the sums of eight
groups at a time are looked up, so that 10,000 resamples of 50,000 groups take about a second.

Shapes: S samples, G groups, M rows of a table, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from maskclip_bench.errors import DataError
from maskclip_bench.results.auc import group_influence
from maskclip_bench.results.bootstrap import (
    FloatArray,
    IntArray,
    index_of,
    sum_by_group,
    weight_of_groups,
)
from maskclip_bench.results.declared_statistics import is_weighted, weighted_statistic
from maskclip_bench.results.intervals import class_weights
from maskclip_bench.results.outcome_columns import (
    Statistic,
    outcome_labels,
    outcome_values,
    ratio_parts,
)

_BLOCK = 8
"""Groups whose sums of signs are looked up together: a byte of random bits."""


def influence_of(
    outcomes: pd.DataFrame, metric: str, statistic: Statistic, columns: Sequence[str] = ()
) -> pd.Series:
    """Influence of each group on a metric [G], by the name of the group, sorted.

    Args:
        outcomes: See `Measurement`.
        metric: Of the outcomes.
        statistic: How it follows from them.
        columns: Of the statistic, where it takes some.

    Raises:
        ValueError: The statistic has no per-sample outcomes, or a column is missing.
    """
    if statistic == "none":
        raise ValueError(f"{metric!r} has no per-sample outcomes, so no group moves it.")
    if is_weighted(statistic):
        weighted = weighted_statistic(outcomes, metric, statistic, columns)
        return pd.Series(weighted.influence(), index=weighted.names.astype(str)).sort_index()
    if statistic == "roc_auc":
        _, values, _ = group_influence(outcomes, metric)
        scores = outcome_values(outcomes, metric)
        return _by_name(outcomes["group"].to_numpy()[~np.isnan(scores)], values)
    if statistic in ("mean_ratio", "mean_of_columns"):
        top, bottom, measured = ratio_parts(outcomes, metric, statistic, columns)
        groups = outcomes["group"].to_numpy()[measured]
        index, number = index_of(groups)
        tops, bottoms = (sum_by_group(part, index, number) for part in (top, bottom))
        total = bottoms.sum(axis=0)
        present = total > 0
        ratio = tops.sum(axis=0)[present] / total[present]
        parts = (tops[:, present] - ratio * bottoms[:, present]) / total[present]
        return _by_name(groups, parts.sum(axis=1) / max(int(present.sum()), 1))
    values = outcome_values(outcomes, metric)
    measured = ~np.isnan(values)
    values, groups = values[measured], outcomes["group"].to_numpy()[measured]
    classes: IntArray = np.zeros(len(values), dtype=np.int64)
    if statistic == "mean_per_class":
        classes, _ = index_of(outcome_labels(outcomes, metric)[measured])
    weights = class_weights(classes)
    means = np.bincount(classes, values) / np.bincount(classes)
    index, number = index_of(groups)
    return _by_name(groups, weight_of_groups(index, weights * (values - means[classes]), number))


def aligned(influences: Sequence[pd.Series]) -> FloatArray:
    """Influences of several rows on the same groups [G, M].

    Raises:
        DataError: They are of different groups.
    """
    first = influences[0]
    for other in influences[1:]:
        if not other.index.equals(first.index):
            raise DataError(
                f"The rows were measured on different groups of samples: {len(first)} and "
                f"{len(other)}. Measure them again on the same data."
            )
    return np.stack([values.to_numpy() for values in influences], axis=1)


def standard_error(influence: FloatArray) -> FloatArray:
    """Of a score, from the influence of its groups [G, ...]."""
    groups = len(influence)
    return np.sqrt((influence**2).sum(axis=0) * groups / max(groups - 1, 1))


def resampled(
    values: FloatArray, influence: FloatArray, *, num_resamples: int = 10_000, seed: int = 0
) -> FloatArray:
    """Scores of M rows in R resamples of the groups, the same resamples for all rows [R, M].

    Args:
        values: The scores [M].
        influence: Of each group on each row [G, M].
        num_resamples: R.
        seed: Of the drawing.
    """
    groups, rows = influence.shape
    random = np.random.default_rng([seed, 2])
    scale = np.sqrt(groups / max(groups - 1, 1))
    num_blocks = -(-groups // _BLOCK)
    padded = np.zeros((num_blocks * _BLOCK, rows))
    padded[:groups] = influence * scale
    signs = 1.0 - 2.0 * (np.arange(256)[:, None] >> np.arange(_BLOCK) & 1)  # [256, 8]
    sums = np.zeros((num_resamples, rows))
    for block in range(num_blocks):
        table = signs @ padded[block * _BLOCK : (block + 1) * _BLOCK]  # [256, M]
        bits = np.frombuffer(random.bytes(num_resamples), dtype=np.uint8)
        sums += table[bits]
    return np.asarray(values + sums, dtype=np.float64)


def _by_name(groups: object, values: FloatArray) -> pd.Series:
    """Values of groups in the order of their appearance, sorted by the groups' names."""
    _, names = pd.factorize(np.asarray(groups))
    return pd.Series(values, index=pd.Index(names.astype(str))).sort_index()
