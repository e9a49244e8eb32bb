from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskclip_bench.results import bootstrap
from maskclip_bench.results.bootstrap import (
    draw_groups,
    draw_signs,
    index_of,
    multiplicities,
    per_class_distribution,
    ratio_distribution,
    sum_by_group,
    weight_of_groups,
)


def brute_force(
    values: np.ndarray, groups: np.ndarray, labels: np.ndarray, *, seed: int, resamples: int
) -> np.ndarray:
    """The definition: collect the samples of each drawn group, then average the class means."""
    names = list(dict.fromkeys(groups.tolist()))
    members = [np.flatnonzero(groups == name) for name in names]
    results = []
    for block in draw_groups(len(names), resamples, seed):
        for drawn in block:
            rows = np.concatenate([members[group] for group in drawn])
            classes = np.unique(labels[rows])
            results.append(np.mean([values[rows][labels[rows] == c].mean() for c in classes]))
    return np.array(results)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 12))
def test_per_class__equals_brute_force(seed: int, num_samples: int, num_groups: int) -> None:
    random = np.random.default_rng(seed)
    values = random.random(num_samples)
    groups, labels = random.integers(0, num_groups, num_samples), random.integers(0, 4, num_samples)
    fast = per_class_distribution(
        values, index_of(groups)[0], index_of(labels)[0], num_resamples=20, seed=seed
    )
    slow = brute_force(values, groups, labels, seed=seed, resamples=20)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-12)


def test_ratio__equals_a_loop_over_resamples() -> None:
    random = np.random.default_rng(0)
    bottom = random.integers(1, 50, (30, 4)).astype(float)
    top = np.floor(bottom * random.random((30, 4)))
    fast = ratio_distribution(top, bottom, num_resamples=50, seed=3)
    slow = [
        np.mean(top[drawn].sum(0) / bottom[drawn].sum(0))
        for block in draw_groups(30, 50, 3)
        for drawn in block
    ]
    np.testing.assert_allclose(fast, slow)


def test_draws__the_same_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = draw_groups(7, 30, 1)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 50)
    blocks = list(draw_groups(7, 30, 1))
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_signs__are_of_both_kinds_alike_often() -> None:
    signs = np.concatenate(list(draw_signs(10, 2000, 0)))
    assert signs.shape == (2000, 10)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.03


def test_index_and_sums_of_groups() -> None:
    index, num_groups = index_of(["b", "a", "b"])
    assert index.tolist() == [0, 1, 0]
    assert num_groups == 2
    assert weight_of_groups(index, np.array([1.0, 2.0, 3.0]), 2).tolist() == [4.0, 2.0]
    sums = sum_by_group(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), index, 2)
    assert sums.tolist() == [[6.0, 8.0], [3.0, 4.0]]


def test_draws__from_memory_are_those_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws() -> list[np.ndarray]:
        given = [(7, 30, 1), (300, 40, 0), (1, 5, 2)]
        return [
            np.concatenate(list(draw(*each)))
            for each in given
            for draw in (draw_signs, multiplicities)
        ]

    bootstrap._kept.cache_clear()
    first, again = draws(), draws()
    assert bootstrap._kept.cache_info().hits == 6
    for mine in again:
        mine += 1  # of the caller
    monkeypatch.setattr(bootstrap, "KEPT_ELEMENTS", 0)
    for kept, anew in zip(first, draws(), strict=True):
        np.testing.assert_array_equal(kept, anew)
    monkeypatch.undo()
    for kept, later in zip(first, draws(), strict=True):
        np.testing.assert_array_equal(kept, later)
        assert kept.dtype == np.float64
    assert all((counts.sum(1) == counts.shape[1]).all() for counts in first[1::2])
