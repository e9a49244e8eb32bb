"""Resampling whole groups: the spread of statistics that have no formula for theirs.

Images that show the same drawing are not independent, so whole groups are resampled (cluster
bootstrap; Davison and Hinkley 1997, Bootstrap Methods and their Application, Sec. 3.8). A statistic
here is a ratio of sums, or a mean of such ratios over classes, so a resample is one row of group
multiplicities times a small matrix of per-group sums.

Shapes: S samples, G groups, R resamples, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from maskclip_bench.results.outcome_columns import mean_ratio

NUM_RESAMPLES = 2000

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_CHUNK_ELEMENTS = 4_000_000
"""Upper bound of a block of drawn group indices (R' x G): 32 MB whatever the data set's size."""


def per_class_distribution(
    values: FloatArray,
    group_index: IntArray,
    class_index: IntArray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> FloatArray:
    """The mean over classes of the class means, of each resample [R].

    A class that no drawn group contains is left out of that resample.

    Args:
        values: Outcomes [S], none of them NaN.
        group_index: What is resampled together [S], from 0.
        class_index: Class of each sample [S], from 0.
        num_resamples: R.
        seed: Of the drawing.
    """
    num_groups = int(group_index.max()) + 1
    shape = (num_groups, int(class_index.max()) + 1)
    ones = np.ones_like(values)
    sums = sparse.coo_matrix((values, (group_index, class_index)), shape=shape).tocsr()  # [G, C]
    counts = sparse.coo_matrix((ones, (group_index, class_index)), shape=shape).tocsr()  # [G, C]
    blocks = []
    for multiplicity in multiplicities(num_groups, num_resamples, seed):  # [R', G]
        drawn_sums = np.asarray(sums.T @ multiplicity.T).T  # [R', C]
        drawn_counts = np.asarray(counts.T @ multiplicity.T).T
        blocks.append(mean_ratio(drawn_sums, drawn_counts))
    return np.concatenate(blocks)


def ratio_distribution(
    numerators: FloatArray,
    denominators: FloatArray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> FloatArray:
    """The mean over classes of numerator / denominator, of each resample [R].

    Args:
        numerators: Sums of each group [G, C].
        denominators: Likewise.
        num_resamples: R.
        seed: Of the drawing.
    """
    return np.concatenate(
        [
            mean_ratio(multiplicity @ numerators, multiplicity @ denominators)
            for multiplicity in multiplicities(len(numerators), num_resamples, seed)
        ]
    )


def index_of(groups: npt.ArrayLike) -> tuple[IntArray, int]:
    """Index [S] of the group of each sample, in order of appearance, and G."""
    index, unique = pd.factorize(np.asarray(groups))
    return index.astype(np.int64), len(unique)


def weight_of_groups(index: IntArray, weights: FloatArray, num_groups: int) -> FloatArray:
    """Sum of the weights [S] in each group -> [G]."""
    return np.bincount(index, weights, minlength=num_groups).astype(np.float64)


def sum_by_group(values: FloatArray, index: IntArray, num_groups: int) -> FloatArray:
    """Sum of the rows of `values` [S, C] in each group -> [G, C]."""
    sums = np.zeros((num_groups, values.shape[1]))
    np.add.at(sums, index, values)
    return sums


KEPT_ELEMENTS = 20_000_000
"""Draws (R x G, a byte each) up to this size are kept for the next test on as many groups."""


def draw_groups(num_groups: int, num_resamples: int, seed: int) -> Iterator[IntArray]:
    """Indices of the drawn groups, in blocks [R', G], with replacement."""
    generator = np.random.default_rng(seed)
    for rows in _blocks(num_groups, num_resamples):
        yield generator.integers(0, num_groups, size=(rows, num_groups))


def draw_signs(num_groups: int, num_resamples: int, seed: int) -> Iterator[FloatArray]:
    """+1 or -1 for each group, in blocks [R', G]."""
    for signs in _perhaps_kept(_small_signs, num_groups, num_resamples, seed):
        yield signs.astype(np.float64) * 2 - 1


def multiplicities(num_groups: int, num_resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each group was drawn, in blocks [R', G]."""
    for counts in _perhaps_kept(_small_counts, num_groups, num_resamples, seed):
        yield counts.astype(np.float64)


Draw = Callable[[int, int, int], Iterator[npt.NDArray[Any]]]


def _perhaps_kept(draw: Draw, *given: int) -> Iterator[npt.NDArray[Any]]:
    """The blocks of a draw (G, R, seed), from memory where all of it is small."""
    num_groups, num_resamples, _ = given
    small = num_groups * num_resamples <= KEPT_ELEMENTS
    return iter(_kept(draw, *given)) if small else draw(*given)


@functools.lru_cache(maxsize=6)
def _kept(draw: Draw, *given: int) -> tuple[npt.NDArray[Any], ...]:
    return tuple(draw(*given))


def _small_signs(num_groups: int, num_resamples: int, seed: int) -> Iterator[npt.NDArray[np.int8]]:
    """0 or 1 in place of -1 and +1."""
    generator = np.random.default_rng([seed, 1])
    for rows in _blocks(num_groups, num_resamples):
        yield generator.integers(0, 2, size=(rows, num_groups), dtype=np.int8)


def _small_counts(num_groups: int, num_resamples: int, seed: int) -> Iterator[npt.NDArray[Any]]:
    """In as many bytes as the largest count needs."""
    for drawn in draw_groups(num_groups, num_resamples, seed):
        rows = len(drawn)
        flat = drawn + np.arange(rows)[:, None] * num_groups
        counts = np.bincount(flat.ravel(), minlength=rows * num_groups)
        yield counts.reshape(rows, num_groups).astype(np.min_scalar_type(int(counts.max())))


def _blocks(num_groups: int, num_resamples: int) -> Iterator[int]:
    """Numbers of rows whose blocks [R', G] stay small."""
    block = max(1, _CHUNK_ELEMENTS // num_groups)
    for start in range(0, num_resamples, block):
        yield min(block, num_resamples - start)
