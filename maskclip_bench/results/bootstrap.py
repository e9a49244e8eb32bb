"""How sure a number is: percentile bootstrap by group, paired tests, spread over seeds.

Images that show the same drawing are not independent, so whole groups are resampled (cluster
bootstrap; Davison and Hinkley 1997, Bootstrap Methods and their Application, Sec. 3.8; percentile
intervals, Sec. 5.3). A statistic here is a ratio of sums, or a mean of such ratios over classes,
so a resample is one row of group multiplicities times a small matrix of per-group sums.

Shapes: S samples, G groups, R resamples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse, special

from maskclip_bench.errors import DataError
from maskclip_bench.results.measurement import Statistic, mean_ratio, ratio_outcomes

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_CHUNK_ELEMENTS = 4_000_000
"""Upper bound of a block of drawn group indices (R' x G): 32 MB whatever the data set's size."""


@dataclass(frozen=True)
class Comparison:
    """Row a minus row b on one metric, in fractions.

    Attributes:
        difference: Mean of a minus mean of b.
        low: Lower end of the interval of the difference.
        high: Upper end.
        p_value: Of "no difference"; None where it cannot be had (one seed).
        num_samples: Samples (or seeds) both rows have.
        num_groups: Independent units among them.
    """

    difference: float
    low: float
    high: float
    p_value: float | None
    num_samples: int
    num_groups: int


def interval(
    values: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    statistic: Statistic = "mean",
    labels: npt.ArrayLike | None = None,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of `values` [S]; NaN values are left out.

    Args:
        values: Per-sample outcomes [S].
        groups: What is resampled together [S]; None = every sample by itself.
        statistic: "mean" or "mean_per_class" (needs `labels`).
        labels: Class of each sample [S].
        num_resamples: R.
        confidence: Share of the resamples inside the interval.
        seed: Of the resampling.

    Raises:
        ValueError: Nothing to resample, labels missing, or the statistic has no interval.
    """
    resamples = bootstrap_distribution(
        values, groups, statistic=statistic, labels=labels, num_resamples=num_resamples, seed=seed
    )
    return _percentile_interval(resamples, confidence)


def bootstrap_distribution(
    values: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    statistic: Statistic = "mean",
    labels: npt.ArrayLike | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> FloatArray:
    """The statistic of each resample [R]; see `interval`.

    A class that no drawn group contains is left out of that resample's mean per class.
    """
    outcome = np.asarray(values, dtype=np.float64)
    measured = ~np.isnan(outcome)
    if not measured.any():
        raise ValueError("There is no outcome to resample: all values are NaN.")
    outcome = outcome[measured]
    group_index, num_groups = _group_index(groups, measured)
    if statistic == "mean":
        class_index = np.zeros(len(outcome), dtype=np.int64)
    elif statistic == "mean_per_class":
        if labels is None:
            raise ValueError("mean_per_class needs the label of each sample.")
        class_index = pd.factorize(np.asarray(labels)[measured])[0].astype(np.int64)
    else:
        raise ValueError(f"A metric of statistic {statistic!r} has no bootstrap interval.")
    num_classes = int(class_index.max()) + 1
    shape = (num_groups, num_classes)
    ones = np.ones_like(outcome)
    sums = sparse.coo_matrix((outcome, (group_index, class_index)), shape=shape).tocsr()  # [G, C]
    counts = sparse.coo_matrix((ones, (group_index, class_index)), shape=shape).tocsr()  # [G, C]
    blocks = []
    for multiplicity in _multiplicities(num_groups, num_resamples, seed):  # [R', G]
        drawn_sums = _times(multiplicity, sums)  # [R', C]
        drawn_counts = _times(multiplicity, counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            class_means = drawn_sums / drawn_counts  # NaN for a class that was not drawn
        present = drawn_counts > 0
        blocks.append(np.where(present, class_means, 0).sum(axis=1) / present.sum(axis=1))
    return np.concatenate(blocks)


def ratio_interval(
    outcomes: pd.DataFrame,
    metric: str,
    *,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric of statistic "mean_ratio" (an mIoU, for example).

    Args:
        outcomes: Outcome table (see `Measurement`).
        metric: Whose two list columns are resampled.
        num_resamples: R.
        confidence: Share of the resamples inside the interval.
        seed: Of the resampling.

    Raises:
        ValueError: The columns are missing or hold nothing.
    """
    numerators, denominators, measured = ratio_outcomes(outcomes, metric)
    index, num_groups = _group_index(outcomes["group"].to_numpy(), measured)
    top, bottom = (
        _sum_by_group(numerators, index, num_groups),
        _sum_by_group(denominators, index, num_groups),
    )  # [G, C]
    resamples = [
        mean_ratio(multiplicity @ top, multiplicity @ bottom)
        for multiplicity in _multiplicities(num_groups, num_resamples, seed)
    ]
    return _percentile_interval(np.concatenate(resamples), confidence)


def _paired_ratio_test(
    outcomes_a: pd.DataFrame,
    outcomes_b: pd.DataFrame,
    metric: str,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Comparison:
    """`paired_test` for "mean_ratio": groups resampled together; rows swapped in whole groups."""
    second = outcomes_b.set_index("sample_id").loc[outcomes_a["sample_id"]].reset_index()
    top_a, bottom_a, measured = ratio_outcomes(outcomes_a, metric)
    top_b, bottom_b, also = ratio_outcomes(second, metric)
    if not np.array_equal(measured, also):
        raise DataError(
            f"The rows were measured on different samples of {metric!r}. Delete both records and "
            "measure them again on the same data."
        )
    index, num_groups = _group_index(outcomes_a["group"].to_numpy(), measured)
    sums = [_sum_by_group(part, index, num_groups) for part in (top_a, bottom_a, top_b, bottom_b)]

    def difference(first: FloatArray, other: FloatArray) -> FloatArray:
        """Of multiplicities [R', G] with which each row's groups count for a, and for b."""
        of_a = mean_ratio(first @ sums[0] + other @ sums[2], first @ sums[1] + other @ sums[3])
        of_b = mean_ratio(first @ sums[2] + other @ sums[0], first @ sums[3] + other @ sums[1])
        return of_a - of_b

    resamples = np.concatenate(
        [
            difference(multiplicity, np.zeros_like(multiplicity))
            for multiplicity in _multiplicities(num_groups, num_resamples, seed)
        ]
    )
    low, high = _percentile_interval(resamples, confidence)
    ones = np.ones((1, num_groups))
    observed = float(difference(ones, 0 * ones)[0])
    generator = np.random.default_rng([seed, 1])
    kept = generator.integers(0, 2, size=(num_resamples, num_groups)).astype(np.float64)
    extreme = np.abs(difference(kept, 1 - kept)) >= abs(observed) - 1e-12
    p_value = (1 + int(extreme.sum())) / (1 + num_resamples)
    return Comparison(observed, low, high, p_value, int(measured.sum()), num_groups)


def paired_test(
    outcomes_a: pd.DataFrame,
    outcomes_b: pd.DataFrame,
    metric: str,
    *,
    statistic: Statistic = "mean",
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Comparison:
    """Compare two rows on the same samples: bootstrap interval and sign-flip permutation p-value.

    The samples are matched by `sample_id`. The interval resamples groups of the per-sample
    differences; the p-value flips the sign of whole groups (under "no difference" a group's
    difference is as likely with one sign as with the other) and is never below 1 / (R + 1).

    Args:
        outcomes_a: Outcome table of row a (see `Measurement`).
        outcomes_b: Of row b.
        metric: Outcome column compared.
        statistic: "mean", "mean_per_class" or "mean_ratio".
        num_resamples: R, for the interval and for the permutations.
        confidence: Of the interval.
        seed: Of both.

    Raises:
        DataError: The two rows were not measured on the same samples.
        ValueError: The statistic has no per-sample outcomes.
    """
    if statistic == "none":
        raise ValueError(f"{metric!r} has no per-sample outcomes to pair.")
    merged = outcomes_a.merge(outcomes_b, on="sample_id", suffixes=("_a", "_b"))
    if len(merged) != len(outcomes_a) or len(merged) != len(outcomes_b):
        raise DataError(
            f"The rows were measured on different samples: {len(outcomes_a)} and "
            f"{len(outcomes_b)}, of which {len(merged)} are shared. Delete both records and "
            "measure them again on the same data."
        )
    if statistic == "mean_ratio":
        return _paired_ratio_test(
            outcomes_a,
            outcomes_b,
            metric,
            num_resamples=num_resamples,
            confidence=confidence,
            seed=seed,
        )
    difference = (merged[f"{metric}_a"] - merged[f"{metric}_b"]).to_numpy(dtype=np.float64)  # [S]
    measured = ~np.isnan(difference)
    labels = merged["label_a"].to_numpy() if statistic == "mean_per_class" else None
    groups = merged["group_a"].to_numpy()
    resamples = bootstrap_distribution(
        difference,
        groups,
        statistic=statistic,
        labels=labels,
        num_resamples=num_resamples,
        seed=seed,
    )
    low, high = _percentile_interval(resamples, confidence)

    group_index, num_groups = _group_index(groups, measured)
    weights = _sample_weights(labels, measured)  # [S'], sums to 1
    group_sums = np.bincount(
        group_index, weights * difference[measured], minlength=num_groups
    ).astype(np.float64)  # [G]
    observed = float(group_sums.sum())
    flipped = _sign_flips(group_sums, num_resamples, seed)
    extreme = np.abs(flipped) >= abs(observed) - 1e-12
    p_value = (1 + int(extreme.sum())) / (1 + num_resamples)
    return Comparison(observed, low, high, p_value, int(measured.sum()), num_groups)


def compare_seeds(
    values_a: Sequence[float], values_b: Sequence[float], *, confidence: float = CONFIDENCE
) -> Comparison:
    """Difference of means over training seeds, paired by seed (Student's t on the differences).

    This is the noise of training on one fixed test set; `paired_test` is the noise of the test
    set for fixed weights.

    Args:
        values_a: One value a seed, of row a.
        values_b: Of row b, same seeds in the same order.
        confidence: Of the interval.

    Raises:
        ValueError: Different numbers of seeds, or fewer than two.
    """
    if len(values_a) != len(values_b) or len(values_a) < 2:
        raise ValueError(
            f"A comparison over seeds needs the same two or more seeds in both rows; got "
            f"{len(values_a)} and {len(values_b)}."
        )
    difference = np.asarray(values_a, dtype=np.float64) - np.asarray(values_b, dtype=np.float64)
    num_seeds = len(difference)
    mean = float(difference.mean())
    standard_error = float(difference.std(ddof=1)) / math.sqrt(num_seeds)
    freedom = num_seeds - 1
    half_width = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * standard_error
    if standard_error > 0:
        p_value = 2 * float(special.stdtr(freedom, -abs(mean) / standard_error))
    else:
        p_value = 1.0 if mean == 0 else 0.0
    return Comparison(mean, mean - half_width, mean + half_width, p_value, num_seeds, num_seeds)


def _percentile_interval(resamples: FloatArray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return float(low), float(high)


def _group_index(
    groups: npt.ArrayLike | None, measured: npt.NDArray[np.bool_]
) -> tuple[IntArray, int]:
    """Index [S'] of the group of each measured sample, and G."""
    if groups is None:
        num_samples = int(measured.sum())
        return np.arange(num_samples, dtype=np.int64), num_samples
    index, unique = pd.factorize(np.asarray(groups)[measured])
    return index.astype(np.int64), len(unique)


def _sum_by_group(values: FloatArray, index: IntArray, num_groups: int) -> FloatArray:
    """Sum of the rows of `values` [S', C] in each group -> [G, C]."""
    sums = np.zeros((num_groups, values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def draw_groups(num_groups: int, num_resamples: int, seed: int) -> Iterator[IntArray]:
    """Indices of the drawn groups, in blocks [R', G], with replacement."""
    generator = np.random.default_rng(seed)
    block = max(1, _CHUNK_ELEMENTS // num_groups)
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        yield generator.integers(0, num_groups, size=(rows, num_groups))


def _multiplicities(num_groups: int, num_resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each group was drawn, in blocks [R', G]."""
    for drawn in draw_groups(num_groups, num_resamples, seed):
        rows = len(drawn)
        flat = drawn + np.arange(rows)[:, None] * num_groups
        counts = np.bincount(flat.ravel(), minlength=rows * num_groups)
        yield counts.reshape(rows, num_groups).astype(np.float64)


def _times(multiplicity: FloatArray, matrix: sparse.csr_matrix) -> FloatArray:
    """`multiplicity` [R', G] @ `matrix` [G, C] -> [R', C]."""
    if matrix.shape[1] == 1:
        return multiplicity @ matrix.toarray()
    return np.asarray(matrix.T @ multiplicity.T).T


def _sample_weights(labels: npt.ArrayLike | None, measured: npt.NDArray[np.bool_]) -> FloatArray:
    """Weight [S'] of each sample in the statistic."""
    num_samples = int(measured.sum())
    if labels is None:
        return np.full(num_samples, 1.0 / num_samples)
    index, unique = pd.factorize(np.asarray(labels)[measured])
    class_sizes = np.bincount(index, minlength=len(unique))
    return np.asarray(1.0 / (len(unique) * class_sizes[index]), dtype=np.float64)


def _sign_flips(group_sums: FloatArray, num_resamples: int, seed: int) -> FloatArray:
    """Sum over groups with random signs, R times [R]."""
    generator = np.random.default_rng([seed, 1])
    block = max(1, _CHUNK_ELEMENTS // len(group_sums))
    flipped = []
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        signs = generator.integers(0, 2, size=(rows, len(group_sums)), dtype=np.int8)
        flipped.append((signs * 2.0 - 1.0) @ group_sums)
    return np.concatenate(flipped)
