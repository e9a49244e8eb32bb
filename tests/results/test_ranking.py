from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest

from maskclip_bench.results import ranking
from maskclip_bench.results.paired import holm
from maskclip_bench.results.ranking import (
    RankInterval,
    critical_difference,
    mean_ranks,
    percentiles,
    rank_intervals,
    tie_groups,
    win_rates,
)
from maskclip_bench.results.sign_flips import sign_flip_p_value


def test_examples() -> None:
    assert doctest.testmod(ranking).failed == 0


def test_rank_intervals__by_hand() -> None:
    better = np.zeros((3, 3), dtype=bool)
    better[0, 1] = better[0, 2] = True
    intervals = rank_intervals(better)
    assert intervals == [RankInterval(1, 1), RankInterval(2, 3), RankInterval(2, 3)]
    assert [str(each) for each in intervals] == ["1", "2-3", "2-3"]


def clearly_better(outcomes: np.ndarray) -> np.ndarray:
    """[M, M] of hits [M, S], by sign flips of all pairs, corrected together."""
    pairs = list(itertools.combinations(range(len(outcomes)), 2))
    tests = holm([sign_flip_p_value(outcomes[a] - outcomes[b]) for a, b in pairs])
    better = np.zeros((len(outcomes),) * 2, dtype=bool)
    for (a, b), p_value in zip(pairs, tests, strict=True):
        if p_value <= 0.05:
            ahead = outcomes[a].mean() > outcomes[b].mean()
            better[(a, b) if ahead else (b, a)] = True
    return better


def test_rank_intervals__cover_all_true_ranks_at_once_by_simulation() -> None:
    levels = np.array([0.8, 0.75, 0.75, 0.6])  # the second and the third are tied
    true = [{1}, {2, 3}, {2, 3}, {4}]
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        better = clearly_better((random.random((4, 300)) < levels[:, None]).astype(float))
        intervals = rank_intervals(better)
        covered += all(
            any(each.low <= rank <= each.high for rank in ranks)
            for each, ranks in zip(intervals, true, strict=True)
        )
    assert covered / 150 > 0.95 - 2 * np.sqrt(0.05 * 0.95 / 150)


def test_ties__equal_rows_are_one_group_in_nineteen_of_twenty_by_simulation() -> None:
    random = np.random.default_rng(1)
    whole = 0
    for _ in range(150):
        outcomes = (random.random((4, 200)) < 0.7).astype(float)
        groups = tie_groups(outcomes.mean(axis=1).tolist(), clearly_better(outcomes))
        whole += groups == [tuple(np.argsort(-outcomes.mean(axis=1), kind="stable"))]
    assert whole / 150 > 0.95 - 2 * np.sqrt(0.05 * 0.95 / 150)


def test_tie_groups__overlap_and_cover_every_row() -> None:
    better = np.zeros((4, 4), dtype=bool)
    better[0, 2] = better[0, 3] = better[1, 3] = True
    assert tie_groups([4.0, 3.0, 2.0, 1.0], better) == [(0, 1), (1, 2), (2, 3)]
    assert tie_groups([1.0, 2.0], np.zeros((2, 2), dtype=bool)) == [(1, 0)]
    better = ~np.tri(3, dtype=bool)
    assert tie_groups([3.0, 2.0, 1.0], better) == [(0,), (1,), (2,)]


def test_mean_ranks_and_win_rates__by_hand_with_a_tie() -> None:
    scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 0.6]])  # three rows, two columns
    assert mean_ranks(scores).tolist() == [1.75, 2.25, 2.0]
    assert win_rates(scores).tolist() == [[0.5, 0.75, 0.5], [0.25, 0.5, 0.5], [0.5, 0.5, 0.5]]
    resamples = np.stack([scores, scores])
    assert mean_ranks(resamples).shape == (2, 3)
    low, high = percentiles(mean_ranks(resamples))
    assert low.tolist() == high.tolist() == [1.75, 2.25, 2.0]


def test_critical_difference__of_equal_rows_is_exceeded_once_in_twenty_by_simulation() -> None:
    random = np.random.default_rng(2)
    limit = critical_difference(4, 12)
    ranks = mean_ranks(random.random((4000, 4, 12)))
    exceeded = (ranks.max(axis=1) - ranks.min(axis=1) > limit).mean()
    assert 0.02 < exceeded < 0.06


def test_critical_difference__of_one_row() -> None:
    with pytest.raises(ValueError, match="needs two rows and a column"):
        critical_difference(1, 3)
