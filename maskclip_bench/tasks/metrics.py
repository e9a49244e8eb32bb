"""Metrics as pure functions: per-sample outcomes first, fractions from them.

Ties. In classification, of classes with equal scores the lowest index wins, everywhere. In
retrieval tied candidates are in random order, and a query scores the probability of a hit; so a
collapsed model, for which all candidates are equal, scores exactly chance.

N samples, C classes, I images, T texts, P joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TIE_TOLERANCE = 1e-6
"""Cosines closer than this are tied: equal vectors give float32 products that differ by so much."""


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the true one, ties broken by the lower index.

    Args:
        scores: [N, C].
        labels: int64 [N].

    Returns:
        int64 [N]; 0 where the prediction is right.

    Example:
        >>> label_ranks(torch.tensor([[0.1, 0.7, 0.7]]), torch.tensor([2]))
        tensor([1])
    """
    own = scores.gather(1, labels[:, None])  # [N, 1]
    index = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (index < labels[:, None]))
    return before.sum(dim=1)


def top_k_hits(ranks: Tensor, k: int) -> Floats:
    """Outcomes of top-k accuracy: 1.0 where the rank is below k."""
    return (ranks < k).cpu().numpy().astype(np.float64)


def predictions(scores: Tensor) -> Integers:
    """Index of the highest score of each row, the lowest of equal ones."""
    return scores.cpu().numpy().argmax(axis=1).astype(np.int64)


def mean_per_class(hits: Floats, labels: Integers) -> float:
    """Mean over classes of the class means: balanced accuracy.

    Example:
        >>> mean_per_class(np.array([1.0, 1.0, 0.0, 1.0]), np.array([0, 0, 0, 1]))
        0.8333333333333333
    """
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def roc_auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    Example:
        >>> roc_auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
        0.875
    """
    negatives = np.sort(scores[~positive])
    below = np.searchsorted(negatives, scores[positive], side="left")
    not_above = np.searchsorted(negatives, scores[positive], side="right")
    return float((below + not_above).mean() / 2 / len(negatives))


@dataclass(frozen=True)
class RetrievalRanks:
    """Where the best match of each query stands among the candidates.

    Attributes:
        better: Candidates that beat every match of the query, [N].
        tied: Candidates, not matches, that tie with its best match, [N].
        best: Matches that tie with the best one, itself included, [N].
    """

    better: Integers
    tied: Integers
    best: Integers

    def hits(self, k: int) -> Floats:
        """Probability that a match is among the first k, tied candidates in random order, [N].

        With r = k - better places left for the tied ones: 1 - C(tied, r) / C(tied + best, r).
        """
        places = np.clip(k - self.better, 0, None)
        miss: Floats = np.ones(len(places), dtype=np.float64)
        for drawn in range(int(places.max(initial=0))):
            left = self.tied - drawn
            factor = np.clip(left, 0, None) / np.maximum(left + self.best, 1)
            miss = np.where(drawn < places, miss * factor, miss)
        return 1.0 - miss

    def optimistic_hits(self, k: int) -> Floats:
        """1.0 where a match is among the first k if ties fall in its favour, [N]."""
        return (self.better < k).astype(np.float64)

    def pessimistic_hits(self, k: int) -> Floats:
        """1.0 where a match is among the first k even if ties fall against it, [N]."""
        return (self.better + self.tied < k).astype(np.float64)


def retrieval_ranks(
    queries: Tensor,
    candidates: Tensor,
    matches: Sequence[Sequence[int]],
    *,
    block: int = 512,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RetrievalRanks:
    """Rank the best match of each query by counting, block by block, what beats it.

    Only one block of scores is in memory, and nothing is sorted.

    Args:
        queries: [N, P], L2-normalised.
        candidates: [M, P], L2-normalised.
        matches: Indices of the candidates that match each query; at least one each.
        block: Queries at a time.
        progress: Told (done, total) queries.
    """
    counts: list[list[Tensor]] = [[], [], []]
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ candidates.T  # [B, M]
        is_match = _match_mask(matches[start : start + block], scores)
        best = scores.masked_fill(~is_match, -torch.inf).amax(dim=1, keepdim=True)
        above = (scores > best + TIE_TOLERANCE) & ~is_match
        level = (scores - best).abs() <= TIE_TOLERANCE
        for found, mask in zip(counts, (above, level & ~is_match, level & is_match), strict=True):
            found.append(mask.sum(dim=1).cpu())
        progress(min(start + block, len(queries)), len(queries))
    better, tied, ties_of_best = (torch.cat(found).numpy() for found in counts)
    return RetrievalRanks(better=better, tied=tied, best=ties_of_best)


def _match_mask(matches: Sequence[Sequence[int]], scores: Tensor) -> Tensor:
    """bool, like `scores`; True where the candidate matches the query."""
    rows = [row for row, found in enumerate(matches) for _ in found]
    columns = [column for found in matches for column in found]
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    mask[rows, columns] = True
    return mask.to(scores.device)


def retrieval_chance(num_matches: Sequence[int], num_candidates: int, k: int) -> float:
    """Expected recall@k of a random order: mean of 1 - C(M - m, k) / C(M, k) over the queries.

    Example:
        >>> round(retrieval_chance([1], 1000, 10), 4)
        0.01
    """
    sizes, repeats = np.unique(np.asarray(num_matches), return_counts=True)
    ranks = RetrievalRanks(
        better=np.zeros(len(sizes), dtype=np.int64),
        tied=(num_candidates - sizes).astype(np.int64),
        best=sizes.astype(np.int64),
    )
    return float(np.average(ranks.hits(min(k, num_candidates)), weights=repeats))
