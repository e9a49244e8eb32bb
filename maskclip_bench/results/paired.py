"""Two rows on the same samples, or over the same training seeds: difference, interval, p-value.

The p-value decides whether a difference is called clear; the interval shows its size. Both take
groups of samples as their units, and Student's t for few of them.

Shapes: S samples, G groups, R resamples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from maskclip_bench.errors import DataError
from maskclip_bench.results import bootstrap
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
    mean_ratio,
    outcome_labels,
    outcome_values,
    ratio_parts,
)
from maskclip_bench.results.proportions import CONFIDENCE
from maskclip_bench.results.sign_flips import (
    MAX_ENUMERATED,
    NUM_FLIPS,
    all_signs,
    sign_flip_p_value,
)
from maskclip_bench.results.weighted import Weighted


@dataclass(frozen=True)
class Comparison:
    """Row a minus row b on one metric, in fractions.

    Attributes:
        difference: Value of a minus value of b.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end.
        p_value: Of "no difference", two-sided.
        num_samples: Samples (or seeds) both rows have.
        num_groups: Independent units among them.
    """

    difference: float
    low: float
    high: float
    p_value: float
    num_samples: int
    num_groups: int

    @property
    def reversed(self) -> Comparison:
        """Row b minus row a."""
        return replace(self, difference=-self.difference, low=-self.high, high=-self.low)


def paired_test(
    outcomes_a: pd.DataFrame,
    outcomes_b: pd.DataFrame,
    metric: str,
    *,
    statistic: Statistic = "mean",
    columns: Sequence[str] = (),
    num_resamples: int = bootstrap.NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Comparison:
    """Compare two rows on the same samples, matched by `sample_id`.

    Means are tested by flipping the signs of whole groups of per-sample differences, ratios by
    exchanging the rows in whole groups (exact where that is cheap, see `sign_flips`), ROC AUC by
    DeLong's test by group; average precision, calibration and worst groups by flipping the signs
    of what each group adds to the difference.

    Args:
        outcomes_a: Outcome table of row a (see `Measurement`).
        outcomes_b: Of row b.
        metric: Metric compared.
        statistic: How it follows from the outcomes.
        columns: Of the statistic, where it takes some.
        num_resamples: R, for the interval of a ratio.
        confidence: Of the interval.
        seed: Of what is drawn.

    Raises:
        DataError: The two rows were not measured on the same samples.
        ValueError: The statistic has no per-sample outcomes.
    """
    if statistic == "none":
        raise ValueError(f"{metric!r} has no per-sample outcomes to pair.")
    first, second = _matched(outcomes_a, outcomes_b)
    if is_weighted(statistic):
        weighted = [
            weighted_statistic(table, metric, statistic, columns) for table in (first, second)
        ]
        _check_measured(weighted[0].measured, weighted[1].measured, metric)
        return _weighted_test(weighted[0], weighted[1], confidence=confidence, seed=seed)
    if statistic == "roc_auc":
        return _auc_test(first, second, metric, confidence)
    if statistic in ("mean_ratio", "mean_of_columns"):
        parts = [ratio_parts(table, metric, statistic, columns) for table in (first, second)]
        measured = parts[0][2]
        _check_measured(measured, parts[1][2], metric)
        index, num_groups = index_of(first["group"].to_numpy()[measured])
        sums = [sum_by_group(values, index, num_groups) for part in parts for values in part[:2]]
        return _ratio_test(
            sums, int(measured.sum()), num_resamples=num_resamples, confidence=confidence, seed=seed
        )
    values = [outcome_values(table, metric) for table in (first, second)]
    measured = ~np.isnan(values[0])
    _check_measured(measured, ~np.isnan(values[1]), metric)
    classes: IntArray = np.zeros(int(measured.sum()), dtype=np.int64)
    if statistic == "mean_per_class":
        classes, _ = index_of(outcome_labels(first, metric)[measured])
    return _mean_test(
        (values[0] - values[1])[measured],
        class_weights(classes),
        index_of(first["group"].to_numpy()[measured])[0],
        confidence=confidence,
        seed=seed,
    )


def compare_seeds(
    values_a: Sequence[float],
    values_b: Sequence[float],
    *,
    others: Sequence[Sequence[float]] = (),
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Difference of means over training seeds, paired by seed (Student's t).

    This is the noise of training on one fixed test set; `paired_test` is the noise of the test
    set for fixed weights. Three seeds tell little of their own spread, so the spread is that of all
    rows of the column together: the residual of rows x seeds (two-way analysis of variance). With
    two rows this is the t-test of the differences.

    Args:
        values_a: One value a seed, of row a.
        values_b: Of row b, same seeds in the same order.
        others: Of the other rows of the column, likewise; training noise is taken to be alike.
        confidence: Of the interval.

    Raises:
        ValueError: Different numbers of seeds, or fewer than two.
    """
    numbers = {len(values) for values in (values_a, values_b, *others)}
    if len(numbers) != 1 or len(values_a) < 2:
        raise ValueError(
            "A comparison over seeds needs the same two or more seeds in all rows; got "
            f"{len(values_a)} and {len(values_b)}."
        )
    values = np.asarray([values_a, values_b, *others], dtype=np.float64)  # [rows, seeds]
    num_rows, num_seeds = values.shape
    residual = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    freedom = (num_rows - 1) * (num_seeds - 1)
    error = math.sqrt(float((residual**2).sum()) / freedom * 2 / num_seeds)
    mean = float((values[0] - values[1]).mean())
    low, high = _t_interval(mean, error, freedom, confidence)
    p_value = _t_p_value(mean, error, freedom)
    return Comparison(mean, max(low, -1.0), min(high, 1.0), p_value, num_seeds, num_seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down method: at most 5 % chance of one false finding in all.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _matched(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables in the order of the first.

    Raises:
        DataError: Their samples, groups or labels differ.
    """
    if a["sample_id"].equals(b["sample_id"]):
        second = b
    else:
        if len(a) != len(b) or set(a["sample_id"]) != set(b["sample_id"]):
            common = len(set(a["sample_id"]) & set(b["sample_id"]))
            raise DataError(
                f"The rows were measured on different samples: {len(a)} and {len(b)}, of which "
                f"{common} are common. Delete both records and measure them again on the same data."
            )
        second = b.set_index("sample_id").loc[a["sample_id"]].reset_index()
    for column in ("group", "label"):
        if (
            column in a
            and column in second
            and (a[column].to_numpy() != second[column].to_numpy()).any()
        ):
            raise DataError(
                f"The rows were measured on different data: the column {column!r} of their "
                "outcomes differs. Delete both records and measure them again on the same data."
            )
    return a, second


def _check_measured(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], metric: str) -> None:
    if not np.array_equal(a, b):
        raise DataError(
            f"The rows were measured on different samples of {metric!r}. Delete both records and "
            "measure them again on the same data."
        )


def _mean_test(
    differences: FloatArray,
    weights: FloatArray,
    group_index: IntArray,
    *,
    confidence: float,
    seed: int,
) -> Comparison:
    """Of per-sample differences [S] with weights [S] that sum to 1."""
    num_groups = int(group_index.max()) + 1
    sums = weight_of_groups(group_index, weights * differences, num_groups)  # [G]
    shares = weight_of_groups(group_index, weights, num_groups)  # [G]
    observed = float(sums.sum())
    # One group more, whose samples differ fully, each in a direction of its own: a width where none
    # differs (Agresti and Min 2005, Stat. Med. 24, for 0/1 outcomes without groups).
    squares = float(((sums - observed * shares) ** 2).sum())
    squares += float((weights**2).sum()) / num_groups
    variance = squares * num_groups / max(num_groups - 1, 1)
    low, high = _t_interval(observed, math.sqrt(variance), num_groups - 1, confidence)
    return Comparison(
        observed,
        max(low, -1.0),
        min(high, 1.0),
        sign_flip_p_value(sums, seed=seed),
        len(differences),
        num_groups,
    )


def _ratio_test(
    sums: list[FloatArray],
    num_samples: int,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Comparison:
    """Of numerators and denominators [G, C] of a, then of b."""
    num_groups = len(sums[0])
    parts = [_exchange(sums[part], sums[part + 2]) for part in (0, 1)]

    def exchanged(kept: FloatArray) -> FloatArray:
        """The difference [R'] where the groups that are not kept [R', G] change sides."""
        (numerators_a, numerators_b), (denominators_a, denominators_b) = (of(kept) for of in parts)
        of_a = mean_ratio(numerators_a, denominators_a)
        return of_a - mean_ratio(numerators_b, denominators_b)

    resamples = np.concatenate(
        [
            mean_ratio(drawn @ sums[0], drawn @ sums[1])
            - mean_ratio(drawn @ sums[2], drawn @ sums[3])
            for drawn in bootstrap.multiplicities(num_groups, num_resamples, seed)
        ]
    )
    observed = float(exchanged(np.ones((1, num_groups)))[0])
    variance = float(resamples.var()) * num_groups / max(num_groups - 1, 1)
    low, high = _t_interval(observed, math.sqrt(variance), num_groups - 1, confidence)
    if num_groups <= MAX_ENUMERATED:
        kept = (all_signs(num_groups) + 1) / 2
        p_value = float(np.mean(np.abs(exchanged(kept)) >= abs(observed) - 1e-12))
    else:
        extreme = 0
        for signs in bootstrap.draw_signs(num_groups, NUM_FLIPS, seed):
            flipped = np.abs(exchanged((signs + 1) / 2))
            extreme += int(np.count_nonzero(flipped >= abs(observed) - 1e-12))
        p_value = (1 + extreme) / (1 + NUM_FLIPS)
    return Comparison(observed, max(low, -1.0), min(high, 1.0), p_value, num_samples, num_groups)


def _exchange(
    of_a: FloatArray, of_b: FloatArray
) -> Callable[[FloatArray], tuple[FloatArray, FloatArray]]:
    """Sums over groups, [G, C] of each row, when only some groups are kept [R', G].

    One product instead of four: b has what a has not. What is only rounding of that is none.
    """
    gain, sum_of_b = of_a - of_b, of_b.sum(axis=0)
    total = of_a.sum(axis=0) + sum_of_b

    def sums(kept: FloatArray) -> tuple[FloatArray, FloatArray]:
        first = kept @ gain + sum_of_b
        second = total - first
        rounding = 1e-12 * total
        return np.where(first > rounding, first, 0.0), np.where(second > rounding, second, 0.0)

    return sums


def _auc_test(a: pd.DataFrame, b: pd.DataFrame, metric: str, confidence: float) -> Comparison:
    """DeLong's test by group (Obuchowski 1997)."""
    value_a, influence_a, counts = group_influence(a, metric)
    value_b, influence_b, _ = group_influence(b, metric)
    num_groups = len(counts)
    observed = value_a - value_b
    variance = float(((influence_a - influence_b) ** 2).sum()) * num_groups / max(num_groups - 1, 1)
    error = math.sqrt(variance)
    low, high = _t_interval(observed, error, num_groups - 1, confidence)
    return Comparison(
        observed,
        max(low, -1.0),
        min(high, 1.0),
        _t_p_value(observed, error, num_groups - 1),
        int(counts.sum()),
        num_groups,
    )


def _weighted_test(a: Weighted, b: Weighted, *, confidence: float, seed: int) -> Comparison:
    """Of statistics that are no sums: of the sum that is closest to their difference.

    Each group's influence and its share of the difference add up to the difference. To exchange the
    rows instead would test more than the difference: rows whose scores are of another size, mixed
    in one ranking, have another spread than either.
    """
    num_groups = a.num_groups
    influence = a.influence() - b.influence()  # [G]
    observed = a.value - b.value
    variance = float((influence**2).sum()) + 1 / (num_groups * a.num_samples)  # as in `_mean_test`
    error = math.sqrt(variance * num_groups / max(num_groups - 1, 1))
    low, high = _t_interval(observed, error, num_groups - 1, confidence)
    return Comparison(
        observed,
        max(low, -1.0),
        min(high, 1.0),
        sign_flip_p_value(influence + observed / num_groups, seed=seed),
        a.num_samples,
        num_groups,
    )


def _t_interval(value: float, error: float, freedom: int, confidence: float) -> tuple[float, float]:
    """Student's t interval; without a degree of freedom nothing is known."""
    if freedom < 1:
        return -1.0, 1.0
    half = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * error
    return value - half, value + half


def _t_p_value(value: float, error: float, freedom: int) -> float:
    if freedom < 1:
        return 1.0
    if error <= 1e-12:  # no spread was seen, so t is not defined: all signs are equal by chance
        return 1.0 if abs(value) <= 1e-12 else 0.5**freedom
    return min(1.0, 2 * float(special.stdtr(freedom, -abs(value) / error)))
