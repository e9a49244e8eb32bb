from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from maskclip_bench.results import sign_flips
from maskclip_bench.results.sign_flips import SMALLEST, all_signs, sign_flip_p_value


def brute_force(differences: np.ndarray) -> float:
    """The definition: the share of all sign patterns whose sum is as far from 0."""
    sums = [
        abs(np.dot(signs, differences))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return float(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10), st.sampled_from([1, 5, 1890]))
def test_p_value__equals_brute_force(steps: list[int], denominator: int) -> None:
    differences = np.array(steps) / denominator
    assert sign_flip_p_value(differences) == pytest.approx(brute_force(differences))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=12))
def test_grid__equals_enumeration(steps: list[int]) -> None:
    differences = np.array([step for step in steps if step], dtype=float)
    if len(differences):
        found = sign_flips._on_grid(differences / 7)
        assert found is not None
        assert sign_flips._grid_p_value(found) == pytest.approx(brute_force(differences))


def test_grid__means_of_five_draws_lie_on_it() -> None:
    draws = np.random.default_rng(0).integers(-5, 6, 300) / 5 / 1890
    draws = draws[draws != 0]
    assert sign_flips._on_grid(draws) is not None
    assert sign_flips._on_grid(np.random.default_rng(0).random(300)) is None


def test_p_value__many_hits_are_the_binomial_test() -> None:
    differences = np.r_[np.ones(5100), -np.ones(4800), np.zeros(40_100)] / 50_000
    assert sign_flip_p_value(differences) == pytest.approx(stats.binomtest(4800, 9900).pvalue)


def test_p_value__off_the_grid_it_is_drawn_or_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(1).normal(0.1, 1, 400)
    drawn = sign_flip_p_value(differences)
    monkeypatch.setattr(sign_flips, "MAX_DRAWN", 100)
    assert sign_flip_p_value(differences) == pytest.approx(drawn, abs=0.02)


def test_p_value__no_difference() -> None:
    assert sign_flip_p_value(np.zeros(5)) == 1.0
    assert sign_flip_p_value(np.array([1.0, -1.0] * 20)) == 1.0


def test_all_signs() -> None:
    assert sorted(map(tuple, all_signs(2))) == [(-1, -1), (-1, 1), (1, -1), (1, 1)]


@pytest.mark.parametrize("number", [200, 3_000])
def test_p_value__is_never_zero(number: int) -> None:
    assert sign_flip_p_value(np.ones(number)) == SMALLEST
    assert sign_flip_p_value(np.linspace(1, 2, 5_000)) == SMALLEST
