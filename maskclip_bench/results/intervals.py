"""How sure a number is: a 95 % interval for every statistic of outcomes.

One idea for all but the plain cases: estimate the variance of the statistic by group (by formula
for a mean, by resampling groups otherwise), turn it into the number of independent 0/1 samples that
would know the value as well, and take Wilson's interval of that many, with Student's t for few
groups. It never leaves 0..1 and keeps a width at 0 and 1. Where few groups hold an error, the
variance is hardly known; it is then pulled towards the largest that the grouping allows.

| statistic | outcomes | interval |
| --- | --- | --- |
| mean | 0 or 1, every sample a group | mid_p: exact binomial, mid-P |
| mean | any in 0..1, or grouped | wilson: variance by group |
| mean_per_class, mean_ratio, mean_of_columns | | wilson_bootstrap: variance by resampling groups |
| calibration_error, geometric_mean, APs | | wilson_bootstrap |
| worst_group | | lowest_group: lowest end of all groups, corrected for their number |
| roc_auc | | newcombe: DeLong's placements, by group |

What each covers in simulation is in docs/trust.md.

Shapes: S samples, G groups, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from maskclip_bench.results import bootstrap
from maskclip_bench.results.auc import auc_interval
from maskclip_bench.results.bootstrap import (
    FloatArray,
    IntArray,
    index_of,
    sum_by_group,
    weight_of_groups,
)
from maskclip_bench.results.declared_statistics import is_weighted, weighted_statistic
from maskclip_bench.results.outcome_columns import (
    Statistic,
    fractions,
    mean_ratio,
    outcome_labels,
    ratio_parts,
)
from maskclip_bench.results.proportions import CONFIDENCE, mid_p_interval, wilson_interval
from maskclip_bench.results.weighted import (
    CalibrationError,
    Weighted,
    WorstGroup,
    effective_number,
)


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a metric.

    Attributes:
        low: Lower end, a fraction.
        high: Upper end.
        method: How it was made, see the table above.
        num_samples: Outcomes behind it.
        num_groups: Independent units among them.
    """

    low: float
    high: float
    method: str
    num_samples: int
    num_groups: int


def metric_interval(
    outcomes: pd.DataFrame,
    name: str,
    statistic: Statistic,
    columns: Sequence[str] = (),
    *,
    num_resamples: int = bootstrap.NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval | None:
    """The interval of a metric from its outcome table (see `Measurement`); None for "none".

    Raises:
        ValueError: A column is missing or holds nothing.
    """
    if statistic == "none":
        return None
    if is_weighted(statistic):
        return _weighted_interval(
            weighted_statistic(outcomes, name, statistic, columns),
            num_resamples=num_resamples,
            confidence=confidence,
            seed=seed,
        )
    if statistic == "roc_auc":
        low, high, counts = auc_interval(outcomes, name, confidence=confidence)
        return Interval(low, high, "newcombe", int(counts.sum()), len(counts))
    if statistic in ("mean_ratio", "mean_of_columns"):
        top, bottom, measured = ratio_parts(outcomes, name, statistic, columns)
        index, num_groups = index_of(outcomes["group"].to_numpy()[measured])
        return _ratio_interval(
            sum_by_group(top, index, num_groups),
            sum_by_group(bottom, index, num_groups),
            num_samples=int(measured.sum()),
            num_resamples=num_resamples,
            confidence=confidence,
            seed=seed,
        )
    values = fractions(outcomes, name)
    measured = ~np.isnan(values)
    groups = outcomes["group"].to_numpy()[measured]
    if statistic == "mean":
        return mean_interval(values[measured], groups, confidence=confidence)
    return per_class_interval(
        values[measured],
        groups,
        outcome_labels(outcomes, name)[measured],
        num_resamples=num_resamples,
        confidence=confidence,
        seed=seed,
    )


def mean_interval(
    values: FloatArray,
    groups: npt.ArrayLike | None = None,
    *,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Interval of the mean of outcomes in 0..1.

    Args:
        values: Outcomes [S], none of them NaN.
        groups: Samples of one group [S] are not independent; None = every sample by itself.
        confidence: Nominal coverage.

    Raises:
        ValueError: There is no outcome.
    """
    num_samples = len(values)
    if num_samples == 0:
        raise ValueError("There is no outcome to make an interval of.")
    index, num_groups = index_of(np.arange(num_samples) if groups is None else groups)
    value = float(values.mean())
    if num_groups == num_samples and bool(np.isin(values, (0.0, 1.0)).all()):
        low, high = mid_p_interval(int(values.sum()), num_samples, confidence=confidence)
        return Interval(low, high, "mid_p", num_samples, num_groups)
    sizes = weight_of_groups(index, np.ones_like(values), num_groups)
    sums = weight_of_groups(index, values, num_groups)
    by_group = float(((sums - value * sizes) ** 2).sum()) / num_samples**2
    variance = by_group * num_groups / max(num_groups - 1, 1)
    by_sample = float(values.var()) / num_samples
    low, high = _interval_of_variance(
        value,
        max(variance, by_sample),
        shares=sizes / num_samples,
        num_informative=_num_informative(sums, sizes),
        confidence=confidence,
    )
    return Interval(low, high, "wilson", num_samples, num_groups)


def per_class_interval(
    values: FloatArray,
    groups: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    num_resamples: int = bootstrap.NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Interval of the mean over classes of the class means, of outcomes in 0..1.

    Args:
        values: Outcomes [S], none of them NaN.
        groups: Samples of one group [S] are not independent.
        labels: Class of each sample [S].
        num_resamples: Of the groups, for the variance.
        confidence: Nominal coverage.
        seed: Of the resampling.
    """
    index, num_groups = index_of(groups)
    classes, _ = index_of(labels)
    weights = class_weights(classes)
    resamples = bootstrap.per_class_distribution(
        values, index, classes, num_resamples=num_resamples, seed=seed
    )
    sums = weight_of_groups(index, values, num_groups)
    sizes = weight_of_groups(index, np.ones_like(values), num_groups)
    low, high = _interval_of_variance(
        float((weights * values).sum()),
        _corrected_variance(resamples, num_groups),
        shares=weight_of_groups(index, weights, num_groups),
        num_informative=_num_informative(sums, sizes),
        confidence=confidence,
    )
    return Interval(low, high, "wilson_bootstrap", len(values), num_groups)


def class_weights(classes: IntArray) -> FloatArray:
    """Weight [S] of each sample in the mean over classes of the class means; they sum to 1."""
    sizes = np.bincount(classes)
    return np.asarray(1.0 / (len(sizes) * sizes[classes]), dtype=np.float64)


def _ratio_interval(
    numerators: FloatArray,
    denominators: FloatArray,
    *,
    num_samples: int,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Interval of a mean of ratios, from the sums of each group [G, C]."""
    resamples = bootstrap.ratio_distribution(
        numerators, denominators, num_resamples=num_resamples, seed=seed
    )
    num_groups = len(numerators)
    sums, sizes = numerators.sum(axis=1), denominators.sum(axis=1)
    low, high = _interval_of_variance(
        float(mean_ratio(numerators.sum(axis=0), denominators.sum(axis=0))),
        _corrected_variance(resamples, num_groups),
        shares=np.full(num_groups, 1 / num_groups),
        num_informative=_num_informative(sums, sizes),
        confidence=confidence,
    )
    return Interval(low, high, "wilson_bootstrap", num_samples, num_groups)


def _weighted_interval(
    statistic: Weighted, *, num_resamples: int, confidence: float, seed: int
) -> Interval:
    """Of a statistic that knows its value under weights.

    Calibration errors and average precisions of few samples are too high on average: the absolute
    value, and the highest precision, take noise for signal. Resamples are higher again by about as
    much, so percentiles of them would be wrong twice; the lower end is lowered by it instead. It
    is 0 for a calibration error that calibrated answers may show, too.
    """
    counts = (statistic.num_samples, statistic.num_groups)
    if isinstance(statistic, WorstGroup):
        return Interval(*_lowest_group(statistic, confidence), "lowest_group", *counts)
    value = min(statistic.value, 1.0)
    resamples = statistic.resampled(num_resamples, seed)
    low, high = _interval_of_variance(
        value,
        _corrected_variance(resamples, statistic.num_groups),
        shares=np.full(statistic.num_groups, 1 / statistic.num_groups),
        num_informative=statistic.num_informative,
        confidence=confidence,
    )
    low = max(low - max(float(resamples.mean()) - value, 0.0), 0.0)
    if isinstance(statistic, CalibrationError):
        noise = statistic.of_calibrated(num_resamples, seed)
        low = 0.0 if value <= float(np.quantile(noise, 0.5 + confidence / 2)) else low
    return Interval(low, high, "wilson_bootstrap", *counts)


def _lowest_group(statistic: WorstGroup, confidence: float) -> tuple[float, float]:
    """Ends of the lowest of several means.

    The lowest lower end holds whichever group is the worst in truth. The lowest upper end is below
    the truth if any of the groups' is, so each leaves out only its share of the tail (Bonferroni).
    """
    tail = (1 - confidence) / 2 / statistic.counts.shape[1]

    def ends(total: float, number: float, level: float) -> tuple[float, float]:
        if statistic.is_binary:
            return mid_p_interval(round(total), round(number), confidence=level)
        return wilson_interval(total / number, number, confidence=level)

    groups = statistic.counts.T.tolist()
    low = min(ends(total, number, confidence)[0] for total, number in groups)
    high = min(ends(total, number, 1 - 2 * tail)[1] for total, number in groups)
    return low, high


def _corrected_variance(resamples: FloatArray, num_groups: int) -> float:
    """Variance of the resamples, without the downward bias of drawing from G groups."""
    return float(resamples.var()) * num_groups / max(num_groups - 1, 1)


def _num_informative(sums: FloatArray, sizes: FloatArray) -> float:
    """Effective number of groups that know something of the spread.

    Those with an error, or with a hit if those are fewer; a group counts as far as its errors are
    among the many: (sum of errors)^2 / sum of squares.
    """
    return min(effective_number(sums), effective_number(sizes - sums))


def _interval_of_variance(
    value: float,
    variance: float,
    *,
    shares: FloatArray,
    num_informative: float,
    confidence: float,
) -> tuple[float, float]:
    """Wilson's interval for the effective number of samples that `variance` stands for.

    Args:
        value: The statistic.
        variance: Of the statistic.
        shares: Weight of each group in the statistic [G]; if groups were either all right or all
            wrong, the variance would be value * (1 - value) * sum of squares of the shares.
        num_informative: Groups behind the variance, K. It counts K^2, the largest possible one 1:
            with few groups in error the latter decides, with a dozen it is gone (the weights were
            chosen by the simulation in docs/trust.md).
        confidence: Nominal coverage.
    """
    largest = float((shares**2).sum())  # 1 / effective size if groups were one sample each
    spread = value * (1 - value)
    relative = variance / spread if spread > 0 else 0.0
    weight = num_informative**2 if spread > 0 else 0.0
    inverse_size = (weight * relative + largest) / (weight + 1)
    freedom = len(shares) - 1
    return wilson_interval(
        value,
        1 / inverse_size,
        freedom=freedom if freedom > 0 else math.inf,
        confidence=confidence,
    )
