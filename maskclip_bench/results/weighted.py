"""Statistics that are no plain means: their value under any weights of the groups.

A bootstrap resample is a vector of whole weights, how often each group was drawn, so a statistic
that knows its value under weights can be resampled without copying a sample. It also knows its
influence: the derivative with respect to each group's weight (the infinitesimal jackknife, see
`influence.py`), from which differences of two rows are tested.

Shapes: S samples, G groups, R resamples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from maskclip_bench.results.bootstrap import (
    FloatArray,
    IntArray,
    draw_signs,
    index_of,
    multiplicities,
    weight_of_groups,
)
from maskclip_bench.results.outcome_columns import (
    RANGE_TOLERANCE,
    fractions,
    outcome_values,
)

NUM_BINS = 15
"""Of a calibration error, of equal width (Guo et al., 2017)."""


class Weighted(ABC):
    """A statistic of outcomes, as a function of the weights of their groups.

    Args:
        groups: Group of each measured row [S']; groups are what is drawn.
        measured: Which rows of the outcome table those are [S].

    Attributes:
        names: The groups, in order of appearance [G].
        index: Group of each measured row [S'], from 0.
        measured: As given.
    """

    def __init__(self, groups: npt.ArrayLike, measured: npt.NDArray[np.bool_]) -> None:
        self.index, self.num_groups = index_of(groups)
        self.names = pd.unique(pd.Series(np.asarray(groups)))
        self.measured = measured

    @property
    def num_samples(self) -> int:
        """Outcomes behind it."""
        return len(self.index)

    @property
    def num_informative(self) -> float:
        """Effective number of groups that know something of its spread."""
        return float(self.num_groups)

    @abstractmethod
    def values(self, weights: FloatArray) -> FloatArray:
        """The statistic with each column of `weights` [G, R], whole numbers -> [R]."""

    @abstractmethod
    def influence(self) -> FloatArray:
        """Derivative of the statistic with respect to the weight of each group [G]; sums to 0."""

    @property
    def value(self) -> float:
        """The statistic."""
        return float(self.values(np.ones((self.num_groups, 1)))[0])

    def resampled(self, num_resamples: int, seed: int) -> FloatArray:
        """The statistic of resamples of the groups [R]."""
        blocks = multiplicities(self.num_groups, num_resamples, seed)
        return np.concatenate([self.values(np.ascontiguousarray(block.T)) for block in blocks])


class CalibrationError(Weighted):
    """ECE (Guo et al., 2017): sum over bins of |sum of (hit - confidence)| / number of samples.

    Args:
        confidence: Of the prediction, 0 to 1 [S'].
        hits: Whether it was right [S'].
        groups: See `Weighted`.
        measured: See `Weighted`.
    """

    def __init__(
        self,
        confidence: FloatArray,
        hits: FloatArray,
        groups: npt.ArrayLike,
        measured: npt.NDArray[np.bool_],
    ) -> None:
        super().__init__(groups, measured)
        self._gap = hits - confidence
        self._bins = calibration_bins(confidence)
        self._gaps = np.zeros((NUM_BINS, self.num_groups))
        np.add.at(self._gaps, (self._bins, self.index), self._gap)
        self._sizes = weight_of_groups(self.index, np.ones_like(confidence), self.num_groups)

    @classmethod
    def of(cls, outcomes: pd.DataFrame, columns: Sequence[str]) -> CalibrationError:
        """From the columns of confidences and of hits.

        Raises:
            ValueError: One is missing or holds nothing, or a confidence is none.
        """
        confidence, hits = (fractions(outcomes, column) for column in columns)
        measured = ~(np.isnan(confidence) | np.isnan(hits))
        confidence, hits = confidence[measured], hits[measured]
        return cls(confidence, hits, outcomes["group"].to_numpy()[measured], measured)

    def values(self, weights: FloatArray) -> FloatArray:
        """See `Weighted`."""
        total = self._sizes @ weights
        return np.asarray(np.abs(self._gaps @ weights).sum(axis=0) / total)

    def of_calibrated(self, num_resamples: int, seed: int) -> FloatArray:
        """What as many answers show where confidence is right on average in each bin [R].

        The gaps of each group keep their size and get random signs, so that their mean is 0.
        """
        total = self._sizes.sum()
        blocks = draw_signs(self.num_groups, num_resamples, seed)
        return np.concatenate(
            [np.abs(self._gaps @ signs.T).sum(axis=0) / total for signs in blocks]
        )

    def influence(self) -> FloatArray:
        """See `Weighted`; of a bin without any gap the derivative is taken as 0."""
        signs = np.sign(self._gaps.sum(axis=1))
        own = weight_of_groups(self.index, signs[self._bins] * self._gap, self.num_groups)
        return np.asarray((own - self.value * self._sizes) / self._sizes.sum())


def calibration_bins(confidence: FloatArray, num_bins: int = NUM_BINS) -> IntArray:
    """Bin of each confidence: b - 1 for ((b - 1) / num_bins, b / num_bins]; 0 falls in the first.

    Example:
        >>> calibration_bins(np.array([0.0, 0.5, 1.0]), 2).tolist()
        [0, 0, 1]
    """
    bins = np.ceil(confidence * num_bins) - 1
    return np.clip(bins, 0, num_bins - 1).astype(np.int64)


class GeometricMean(Weighted):
    """exp(mean of logarithms): of the probabilities of the truth it is exp(-NLL).

    Args:
        logarithms: [S'].
        groups: See `Weighted`.
        measured: See `Weighted`.
    """

    def __init__(
        self, logarithms: FloatArray, groups: npt.ArrayLike, measured: npt.NDArray[np.bool_]
    ) -> None:
        super().__init__(groups, measured)
        self._sums = weight_of_groups(self.index, logarithms, self.num_groups)
        self._sizes = weight_of_groups(self.index, np.ones_like(logarithms), self.num_groups)

    @classmethod
    def of(cls, outcomes: pd.DataFrame, columns: Sequence[str]) -> GeometricMean:
        """From the column of logarithms.

        Raises:
            ValueError: It is missing or holds nothing, or a value is above 0.
        """
        logarithms = outcome_values(outcomes, columns[0])
        measured = ~np.isnan(logarithms)
        if (logarithms[measured] > RANGE_TOLERANCE).any():
            raise ValueError(
                f"The outcome column {columns[0]!r} holds logarithms above 0, which are of no "
                "probability."
            )
        return cls(logarithms[measured], outcomes["group"].to_numpy()[measured], measured)

    def values(self, weights: FloatArray) -> FloatArray:
        """See `Weighted`."""
        return np.exp((self._sums @ weights) / (self._sizes @ weights))

    def influence(self) -> FloatArray:
        """See `Weighted`."""
        total = self._sizes.sum()
        mean = self._sums.sum() / total
        return np.asarray(np.exp(mean) * (self._sums - mean * self._sizes) / total)


class WorstGroup(Weighted):
    """The lowest mean of a group. Samples are what is drawn, each within its own group.

    Args:
        hits: [S'].
        groups: Of the means [S'].
        names: Samples [S'].
        measured: See `Weighted`.

    Attributes:
        counts: Hits and samples of each group [2, number of groups].
    """

    def __init__(
        self,
        hits: FloatArray,
        groups: npt.ArrayLike,
        names: npt.ArrayLike,
        measured: npt.NDArray[np.bool_],
    ) -> None:
        super().__init__(names, measured)
        self._group, number = index_of(groups)
        self._hits = hits
        ones = np.ones_like(hits)
        self.counts = np.stack(
            [weight_of_groups(self._group, each, number) for each in (hits, ones)]
        )

    @classmethod
    def of(cls, outcomes: pd.DataFrame, columns: Sequence[str]) -> WorstGroup:
        """From the column of hits and the column `group`.

        Raises:
            ValueError: It is missing or holds nothing.
        """
        hits = fractions(outcomes, columns[0])
        measured = ~np.isnan(hits)
        groups, names = (outcomes[each].to_numpy()[measured] for each in ("group", "sample_id"))
        return cls(hits[measured], groups, names, measured)

    @property
    def is_binary(self) -> bool:
        """Whether every outcome is 0 or 1."""
        return bool(np.isin(self._hits, (0.0, 1.0)).all())

    @property
    def means(self) -> FloatArray:
        """Of each group."""
        return np.asarray(self.counts[0] / self.counts[1])

    def values(self, weights: FloatArray) -> FloatArray:
        """See `Weighted`; a group of which nothing was drawn does not count."""
        lowest = np.full(weights.shape[1], np.inf)
        for group in range(self.counts.shape[1]):
            own = self._group == group
            total = weights[own].sum(axis=0)
            found = self._hits[own] @ weights[own]
            mean = np.divide(found, total, out=np.full_like(found, np.inf), where=total > 0)
            lowest = np.minimum(lowest, mean)
        return lowest

    def influence(self) -> FloatArray:
        """See `Weighted`: only the samples of the worst group move it."""
        worst = int(self.means.argmin())
        own = self._group == worst
        return np.asarray(np.where(own, self._hits - self.means[worst], 0) / self.counts[1, worst])


def effective_number(parts: FloatArray) -> float:
    """Of the groups that hold the parts [G]: (sum)^2 / sum of squares."""
    squares = float((parts**2).sum())
    return float(parts.sum()) ** 2 / squares if squares > 0 else 0.0
