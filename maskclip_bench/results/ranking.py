"""Ranks with intervals, groups of ties, who beats whom, and the critical difference of mean ranks.

Rank 1 is the best; equal scores share the mean of their ranks. M rows, C columns, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from maskclip_bench.results.bootstrap import FloatArray

IntArray = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RankInterval:
    """The ranks that a row may have: `low` is its best and `high` its worst."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def rank_intervals(better: Pairs) -> list[RankInterval]:
    """Ranks of M rows, of which some are clearly better than others.

    If the pairs come from tests that are corrected over all pairs (Holm), all true ranks are inside
    with 95 % (Mogstad, Romano, Shaikh and Wilhelm 2024, Rev. Econ. Stud. 91).

    Args:
        better: [M, M], True at [i, j] where row i is clearly better than row j.
    """
    number = len(better)
    return [
        RankInterval(1 + int(better[:, row].sum()), number - int(better[row].sum()))
        for row in range(number)
    ]


def tie_groups(scores: Sequence[float], better: Pairs) -> list[tuple[int, ...]]:
    """Largest runs of neighbours in rank of which no pair is told apart, best first.

    A row may be in several groups: A may be tied with B, and B with C, where A beats C.

    Args:
        scores: Of the rows [M], higher is better.
        better: See `rank_intervals`.

    Example:
        >>> better = np.zeros((3, 3), dtype=bool)
        >>> better[0, 2] = True
        >>> tie_groups([0.9, 0.8, 0.7], better)
        [(0, 1), (1, 2)]
    """
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    groups: list[tuple[int, ...]] = []
    for start in range(len(order)):
        stop = start + 1
        while stop < len(order) and not any(
            better[other, order[stop]] or better[order[stop], other] for other in order[start:stop]
        ):
            stop += 1
        group = tuple(order[start:stop])
        if not groups or not set(group) <= set(groups[-1]):
            groups.append(group)
    return groups


def mean_ranks(scores: FloatArray) -> FloatArray:
    """Mean over the columns of the rank of each row: [..., M, C], higher is better -> [..., M]."""
    return np.asarray(stats.rankdata(-scores, axis=-2).mean(axis=-1))


def win_rates(scores: FloatArray) -> FloatArray:
    """Share of the columns in which row i beats row j: [..., M, C] -> [..., M, M]; ties count half.

    Example:
        >>> win_rates(np.array([[0.5, 0.7], [0.4, 0.7]]))
        array([[0.5 , 0.75],
               [0.25, 0.5 ]])
    """
    first, second = scores[..., :, None, :], scores[..., None, :, :]
    wins = (first > second) + 0.5 * (first == second)
    return np.asarray(wins.mean(axis=-1))


def percentiles(
    resamples: FloatArray, *, confidence: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Ends of the percentile interval of each entry of [R, ...]."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resamples, [tail, 100 - tail], axis=0)
    return low, high


def critical_difference(num_rows: int, num_columns: int, *, significance: float = 0.05) -> float:
    """Nemenyi's smallest clear difference of two mean ranks (Demsar 2006, J. Mach. Learn. Res. 7).

    It takes the columns as a sample of data sets: with few columns it is large, however many images
    each has.

    Args:
        num_rows: M, two or more.
        num_columns: C.
        significance: Family-wise error over all pairs.

    Example:
        >>> round(critical_difference(4, 14), 2)  # the example of that paper
        1.25

    Raises:
        ValueError: There are not two rows, or no column.
    """
    if num_rows < 2 or num_columns < 1:
        raise ValueError(
            f"Ranks of {num_rows} rows over {num_columns} columns have no critical difference; it "
            "needs two rows and a column."
        )
    q = float(stats.studentized_range.ppf(1 - significance, num_rows, np.inf)) / math.sqrt(2)
    return q * math.sqrt(num_rows * (num_rows + 1) / (6 * num_columns))
