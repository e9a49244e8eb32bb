"""Metrics as pure functions: per-sample outcomes first, fractions from them.

**Ties.** Whatever has equal scores is in random order, and a sample scores the probability of a
hit; so a collapsed model, for which all classes or candidates are equal, scores exactly chance.
Scores are equal where they are the same number; `Candidates` gives the same number for vectors
that are equal, which a matrix product alone does not promise.

**Not a number.** Every function refuses scores and vectors that are NaN or infinite
(`NonFiniteError`): a comparison with NaN is false, which would count as a hit.

N samples, C classes, I images, T texts, P joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskclip_bench.errors import DataError, NonFiniteError
from maskclip_bench.results.weighted import calibration_bins

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Ranks:
    """Where the best right answer of each sample is among the candidates.

    Attributes:
        better: Wrong candidates that score above every right one, [N].
        tied: Wrong candidates that tie with the best right one, [N].
        best: Right candidates that tie with the best one, itself included, [N].
    """

    better: Integers
    tied: Integers
    best: Integers

    def hits(self, k: int) -> Floats:
        """Probability that a right one is among the first k, tied ones in random order, [N].

        With r = k - better positions left for the tied ones: 1 - C(tied, r) / C(tied + best, r).
        """
        positions = np.clip(k - self.better, 0, None)
        miss: Floats = np.ones(len(positions), dtype=np.float64)
        for drawn in range(int(positions.max(initial=0))):
            left = self.tied - drawn
            factor = np.clip(left, 0, None) / np.maximum(left + self.best, 1)
            miss = np.where(drawn < positions, miss * factor, miss)
        return 1.0 - miss

    def expected(self) -> Floats:
        """Expected position of the first right one, counted from 1, tied ones in random order, [N].

        Of `tied + best` candidates in random order the first right one is at (tied + best + 1) /
        (best + 1).
        """
        position: Floats = self.better + (self.tied + self.best + 1) / (self.best + 1)
        return position

    def optimistic_hits(self, k: int) -> Floats:
        """1.0 where a right one is among the first k if ties fall in its favour, [N]."""
        return (self.better < k).astype(np.float64)

    def pessimistic_hits(self, k: int) -> Floats:
        """1.0 where a right one is among the first k even if ties fall against it, [N]."""
        return (self.better + self.tied < k).astype(np.float64)


def check_finite(values: Tensor, what: str) -> None:
    """Refuse values of which no number may be made.

    Args:
        values: [N, ...].
        what: What they are, for the message ("class scores").

    Raises:
        NonFiniteError: Some are NaN or infinite; says how many of how many rows.
    """
    if bool(torch.isfinite(values).all()):
        return
    wrong = int((~torch.isfinite(values.reshape(len(values), -1)).all(dim=1)).sum())
    raise NonFiniteError(
        f"{wrong} of {len(values)} rows of the {what} are NaN or infinite, so no number is made of "
        "them. Check the weights of the backbone and its precision."
    )


def label_ranks(scores: Tensor, labels: Tensor) -> Ranks:
    """How many classes come before the true one, and how many tie with it.

    Args:
        scores: [N, C].
        labels: int64 [N], from 0 to C - 1.

    Raises:
        NonFiniteError: Scores are NaN or infinite.
        DataError: A label is none of the classes.

    Example:
        >>> label_ranks(torch.tensor([[0.1, 0.7, 0.7]]), torch.tensor([2])).hits(1)
        array([0.5])
    """
    check_finite(scores, "class scores")
    num_classes = scores.shape[1]
    wrong = (labels < 0) | (labels >= num_classes)
    if bool(wrong.any()):
        raise DataError(
            f"{int(wrong.sum())} of {len(labels)} labels are none of the {num_classes} classes "
            f"(the first is {int(labels[wrong][0])}). Correct the labels; a sample without a class "
            "cannot be scored."
        )
    own = scores.gather(1, labels[:, None])  # [N, 1]
    better = (scores > own).sum(dim=1).cpu().numpy()
    level = (scores == own).sum(dim=1).cpu().numpy()
    return Ranks(better=better, tied=level - 1, best=np.ones_like(better))


def predictions(scores: Tensor) -> Integers:
    """Index of the highest score of each row, the lowest of equal ones.

    Raises:
        NonFiniteError: Scores are NaN or infinite.
    """
    check_finite(scores, "class scores")
    return scores.cpu().numpy().argmax(axis=1).astype(np.int64)


def mean_per_class(hits: Floats, labels: Integers) -> float:
    """Mean over classes of the class means: balanced accuracy.

    Raises:
        NonFiniteError: Hits are NaN or infinite.

    Example:
        >>> mean_per_class(np.array([1.0, 1.0, 0.0, 1.0]), np.array([0, 0, 0, 1]))
        0.8333333333333333
    """
    check_finite(torch.from_numpy(hits), "hits")
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def worst_group(hits: Floats, groups: Sequence[str]) -> tuple[str, float]:
    """The group with the lowest mean, and that mean; of equal ones the first in order of names.

    Raises:
        NonFiniteError: Hits are NaN or infinite.

    Example:
        >>> worst_group(np.array([1.0, 0.0, 1.0]), ["sea", "sea", "land"])
        ('sea', 0.5)
    """
    check_finite(torch.from_numpy(hits), "hits")
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    means = np.bincount(index, weights=hits) / np.bincount(index)
    return str(names[means.argmin()]), float(means.min())


def average_precision(scores: Floats, present: NDArray[np.bool_], *, points: int | None) -> float:
    """Average precision of one class; samples of equal scores count together.

    Args:
        scores: [N].
        present: Which samples show the class, bool [N]; at least one.
        points: None = the area under the curve, scikit-learn's; 11 = VOC2007's, the mean over
            recalls of 0, 0.1, ... 1 of the highest precision at that recall or above.

    Raises:
        NonFiniteError: Scores are NaN or infinite.

    Example:
        >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), points=None)
        0.8333333333333333
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    check_finite(torch.from_numpy(scores), "class scores")
    if points is None:
        return float(average_precision_score(present, scores))
    precision, recall, _ = precision_recall_curve(present, scores)
    precision, recall = precision[:-1], recall[:-1]  # the last point is scikit-learn's own (1, 0)
    at_recall = np.linspace(0, 1, points)
    # A recall of 3/10 is not the float 0.3.
    return float(np.mean([precision[recall >= level - 1e-9].max() for level in at_recall]))


def mean_average_precision(
    scores: Floats, labels: NDArray[np.int8], *, points: int | None = None
) -> tuple[float, list[float]]:
    """Mean over classes of the average precision, and that of each class.

    Args:
        scores: [N, C].
        labels: int8 [N, C]: 1 = present, 0 = absent, -1 = not scored for this class.
        points: See `average_precision`.

    Raises:
        NonFiniteError: Scores are NaN or infinite.
        DataError: A class occurs in no sample.
    """
    absent = np.flatnonzero((labels == 1).sum(axis=0) == 0)
    if len(absent):
        raise DataError(
            f"{len(absent)} of {labels.shape[1]} classes occur in no sample (the first is "
            f"{absent[0]}), so they have no average precision. Use a split that has all classes."
        )
    values = []
    for column in range(labels.shape[1]):
        scored = labels[:, column] >= 0
        values.append(
            average_precision(scores[scored, column], labels[scored, column] == 1, points=points)
        )
    return float(np.mean(values)), values


def expected_calibration_error(confidence: Floats, hits: Floats, *, num_bins: int = 15) -> float:
    """ECE (Guo et al., 2017): how far confidence is from accuracy, in bins of equal width.

    Args:
        confidence: Probability of the predicted class, [N].
        hits: Whether it was right, or the probability of that where classes tie, [N].
        num_bins: Bins ((b - 1) / num_bins, b / num_bins].

    Raises:
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> expected_calibration_error(np.array([0.75, 0.75]), np.array([1.0, 0.0]))
        0.25
    """
    check_finite(torch.from_numpy(confidence), "confidences")
    check_finite(torch.from_numpy(hits), "hits")
    bins = calibration_bins(confidence, num_bins)
    gaps = np.bincount(bins, weights=hits - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def brier_scores(probabilities: Tensor, labels: Tensor) -> Floats:
    """Half the squared distance between probabilities and the truth, 0 to 1, [N].

    Args:
        probabilities: [N, C], each row sums to 1.
        labels: int64 [N].

    Raises:
        NonFiniteError: Probabilities are NaN or infinite.

    Example:
        >>> brier_scores(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        array([0.25])
    """
    check_finite(probabilities, "probabilities")
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    squared: Floats = (probabilities.double() - truth).square().sum(dim=1).cpu().numpy()
    return squared / 2


def roc_auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    Raises:
        NonFiniteError: Scores are NaN or infinite.
        DataError: All samples are positive, or all negative.

    Example:
        >>> roc_auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
        0.875
    """
    from sklearn.metrics import roc_auc_score

    check_finite(torch.from_numpy(scores), "class scores")
    num_positive = int(positive.sum())
    if num_positive in (0, len(positive)):
        raise DataError(
            f"ROC AUC compares two classes, and {num_positive} of {len(positive)} samples are of "
            "the second one. Use top1_accuracy, or a split that has both."
        )
    return float(roc_auc_score(positive, scores))


class Candidates:
    """Vectors to compare others with; those that are equal get equal scores, to the last bit.

    Args:
        vectors: [M, P].

    Raises:
        NonFiniteError: Some are NaN or infinite.
    """

    def __init__(self, vectors: Tensor) -> None:
        check_finite(vectors, "embeddings")
        vectors = vectors + 0.0  # -0.0 and 0.0 are equal
        self._len = len(vectors)
        self._inverse = equal_rows(vectors)  # int64 [M], or None
        if self._inverse is not None:
            vectors = vectors[_first_of_group(self._inverse)]
        self._distinct = vectors  # [U, P]

    def __len__(self) -> int:
        return self._len

    def scores(self, queries: Tensor) -> Tensor:
        """Dot products, [B, P] -> [B, M], in the type of the vectors.

        Raises:
            NonFiniteError: Queries are NaN or infinite.
        """
        check_finite(queries, "embeddings")
        scores = queries.to(self._distinct) @ self._distinct.T  # [B, U]
        return scores if self._inverse is None else scores[:, self._inverse]


def equal_rows(vectors: Tensor) -> Tensor | None:
    """Number of the group of equal rows that each row is in, int64 [M]; None if all differ."""
    bits = vectors.contiguous().view(torch.int16)  # [M, ...]
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator)
    factors = (2 * factors + 1).to(vectors.device)
    hashes = torch.cat([(part.long() * factors).sum(dim=1) for part in bits.split(4096)])
    groups, inverse, sizes = hashes.unique(return_inverse=True, return_counts=True)
    if len(groups) == len(hashes):
        return None  # rows of different hashes differ
    repeated = (sizes[inverse] > 1).nonzero()[:, 0]
    first = _first_of_group(inverse)[inverse[repeated]]
    if torch.equal(vectors[repeated], vectors[first]):
        return inverse
    _, exact = np.unique(vectors.cpu().numpy(), axis=0, return_inverse=True)  # hashes collided
    return torch.from_numpy(exact.reshape(-1)).to(vectors.device)


def _first_of_group(inverse: Tensor) -> Tensor:
    """The first row of each group."""
    first = inverse.new_full((int(inverse.max()) + 1,), len(inverse))
    index = torch.arange(len(inverse), device=inverse.device)
    return first.scatter_reduce(0, inverse, index, "amin")


def retrieval_chance(num_matches: Sequence[int], num_candidates: int, k: int) -> float:
    """Expected recall@k of a random order: mean of 1 - C(M - m, k) / C(M, k) over the queries.

    Example:
        >>> round(retrieval_chance([1], 1000, 10), 4)
        0.01
    """
    sizes, repeats = np.unique(np.asarray(num_matches), return_counts=True)
    ranks = Ranks(
        better=np.zeros(len(sizes), dtype=np.int64),
        tied=(num_candidates - sizes).astype(np.int64),
        best=sizes.astype(np.int64),
    )
    return float(np.average(ranks.hits(min(k, num_candidates)), weights=repeats))
