from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from scipy import stats

from maskclip_bench.results import proportions
from maskclip_bench.results.proportions import mid_p_interval, wilson_interval


def test_examples() -> None:
    assert doctest.testmod(proportions).failed == 0


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (1, 50), (7, 20), (999, 1000), (5, 5)])
def test_mid_p__ends_are_where_the_mid_p_value_is_the_tail(hits: int, trials: int) -> None:
    low, high = mid_p_interval(hits, trials)

    def at_most(p: float) -> float:
        distribution = stats.binom(trials, p)
        return float(distribution.cdf(hits - 1) + distribution.pmf(hits) / 2)

    assert low == 0 if hits == 0 else at_most(low) == pytest.approx(0.975)
    assert high == 1 if hits == trials else at_most(high) == pytest.approx(0.025)


def test_mid_p__lies_within_clopper_pearson() -> None:
    exact = stats.binomtest(7, 20).proportion_ci(0.95, method="exact")
    low, high = mid_p_interval(7, 20)
    assert exact.low < low < 0.35 < high < exact.high


def test_mid_p__is_symmetric() -> None:
    low, high = mid_p_interval(3, 40)
    assert mid_p_interval(37, 40) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("hits", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_mid_p__no_proportion(hits: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{hits} of {trials} is no proportion"):
        mid_p_interval(hits, trials)


def test_wilson__equals_scipy() -> None:
    expected = stats.binomtest(7, 20).proportion_ci(0.95, method="wilson")
    assert wilson_interval(0.35, 20) == pytest.approx((expected.low, expected.high))


def test_wilson__few_degrees_of_freedom_widen_it_and_ends_keep_a_width() -> None:
    low, high = wilson_interval(0.5, 20, freedom=4)
    plain = wilson_interval(0.5, 20, freedom=math.inf)
    assert low < plain[0] < plain[1] < high
    assert wilson_interval(1.0, 50)[0] < 0.95
    assert wilson_interval(1.0, 50)[1] == 1.0
    assert wilson_interval(0.0, 50) == pytest.approx((0.0, 1 - wilson_interval(1.0, 50)[0]))


def test_mid_p__exact_coverage_of_the_issue_s_cases() -> None:
    """Summed over all counts, no simulation; the two cases above .97 are those of docs/trust.md."""
    coverage = {}
    for trials in (50, 100, 1000):
        for p in (0.5, 0.9, 0.99):
            counts = np.arange(trials + 1)
            probability = stats.binom.pmf(counts, trials, p)
            likely = probability > 1e-9
            held = [
                low <= p <= high
                for low, high in (mid_p_interval(int(count), trials) for count in counts[likely])
            ]
            coverage[trials, p] = float(probability[likely][held].sum())
    too_wide = {(50, 0.99), (100, 0.99)}
    assert all(0.93 <= value <= 0.97 for key, value in coverage.items() if key not in too_wide)
    assert coverage[50, 0.99] == pytest.approx(0.986, abs=1e-3)
    assert coverage[100, 0.99] == pytest.approx(0.982, abs=1e-3)
