"""The spread of a ROC AUC: placements (DeLong), by group (Obuchowski), and near 1 (Newcombe).

DeLong et al. 1988, Biometrics 44; Obuchowski 1997, Biometrics 53; Newcombe 2006, Stat. Med. 25.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, special

from maskclip_bench.results.bootstrap import FloatArray, IntArray, index_of, sum_by_group
from maskclip_bench.results.outcome_columns import auc_scores, placements
from maskclip_bench.results.weighted import effective_number

KNOWN_FROM = 6
"""Groups in error from which on their measured variance weighs more than the modelled one (chosen
by the simulation in docs/trust.md)."""


def group_influence(outcomes: pd.DataFrame, name: str) -> tuple[float, FloatArray, IntArray]:
    """The AUC, what each group adds to its error [G], and its rows of each label [G, 2].

    The variance of the AUC is the sum of squares of the influences, times G / (G - 1).
    """
    positive, negative, is_positive, is_negative = auc_scores(outcomes, name)
    of_positive = _shares(positive, negative)  # [P]: share of the negatives below each
    of_negative = 1 - _shares(negative, positive)  # [N]: share of the positives above each
    value = float(of_positive.mean())
    measured = is_positive | is_negative
    index, num_groups = index_of(outcomes["group"].to_numpy()[measured])
    influence = np.zeros(int(measured.sum()))
    influence[is_positive[measured]] = (of_positive - value) / len(positive)
    influence[is_negative[measured]] = (of_negative - value) / len(negative)
    labels = np.stack([is_positive[measured], is_negative[measured]], axis=1).astype(np.float64)
    sums = sum_by_group(influence[:, None], index, num_groups)[:, 0]
    counts = sum_by_group(labels, index, num_groups).astype(np.int64)
    return value, sums, counts


def _shares(scores: FloatArray, others: FloatArray) -> FloatArray:
    below, ties = placements(scores, others)
    return (below + ties / 2) / len(others)


def hanley_mcneil_variance(auc: float, num_positive: float, num_negative: float) -> float:
    """Of an AUC, with mean sizes in place of the two labels' (Newcombe's method 5)."""
    half = (num_positive + num_negative) / 2 - 1
    inner = 1 + half * ((1 - auc) / (2 - auc) + auc / (1 + auc))
    return max(auc * (1 - auc) * inner, 0.0) / (num_positive * num_negative)


def newcombe_interval(
    value: float, num_positive: float, num_negative: float, *, freedom: float, confidence: float
) -> tuple[float, float]:
    """Newcombe's method 5: ends at which Hanley and McNeil's variance gives `value`.

    Args:
        value: The AUC.
        num_positive: Effective rows of the positive label (a fraction where rows are grouped).
        num_negative: Of the negative one.
        freedom: Degrees of freedom of Student's t.
        confidence: Nominal coverage.
    """
    t = float(special.stdtrit(freedom, 0.5 + confidence / 2))

    def spread(auc: float) -> float:
        return t * math.sqrt(hanley_mcneil_variance(auc, num_positive, num_negative))

    low = 0.0
    if value > 0:
        # At 1 the spread is 0, so 1 itself would solve the equation: look below it.
        low = optimize.brentq(lambda auc: auc + spread(auc) - value, 0.0, value * (1 - 1e-9))
    high = 1.0
    if value < 1:
        start = value + (1 - value) * 1e-9
        high = optimize.brentq(lambda auc: auc - spread(auc) - value, start, 1.0)
    return float(low), float(high)


def auc_interval(
    outcomes: pd.DataFrame, name: str, *, confidence: float
) -> tuple[float, float, npt.NDArray[np.int64]]:
    """Interval of a metric of statistic "roc_auc" -> low, high, rows of each label by group [G, 2].

    The effective number of rows is the real one divided by a design effect: the variance as
    measured (by group, and not below that by row) over Hanley and McNeil's, which takes scores to
    be exponential and is too large near 1. Where few rows hold an error the effect is pulled
    towards the largest one that the grouping allows.
    """
    value, influence, counts = group_influence(outcomes, name)
    positive, negative = (float(count) for count in counts.sum(axis=0))
    num_groups = len(counts)
    freedom = max(num_groups - 1, 1)
    sizes = counts.sum(axis=1).astype(np.float64)
    largest = float((sizes**2).sum() / sizes.sum())
    variance = float((influence**2).sum()) * num_groups / freedom
    if num_groups < positive + negative:
        _, alone, _ = group_influence(outcomes.assign(group=outcomes["sample_id"]), name)
        variance = max(variance, float((alone**2).sum()))
    modelled = hanley_mcneil_variance(value, positive, negative)
    weight = (effective_number(np.abs(influence)) / KNOWN_FROM) ** 2 if modelled > 0 else 0.0
    measured = variance / modelled if modelled > 0 else 0.0
    effect = (weight * measured + largest) / (weight + 1)
    low, high = newcombe_interval(
        value, positive / effect, negative / effect, freedom=freedom, confidence=confidence
    )
    return low, high, counts
