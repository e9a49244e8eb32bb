from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskclip_bench.errors import DataError
from maskclip_bench.results import bootstrap
from maskclip_bench.results.bootstrap import (
    bootstrap_distribution,
    compare_seeds,
    draw_groups,
    interval,
    paired_test,
)


def brute_force(
    values: np.ndarray, groups: np.ndarray, labels: np.ndarray | None, *, seed: int, resamples: int
) -> np.ndarray:
    """The definition: collect the samples of each drawn group, then take the statistic."""
    names = list(dict.fromkeys(groups.tolist()))
    members = [np.flatnonzero(groups == name) for name in names]
    results = []
    for block in draw_groups(len(names), resamples, seed):
        for drawn in block:
            rows = np.concatenate([members[group] for group in drawn])
            if labels is None:
                results.append(values[rows].mean())
            else:
                classes = np.unique(labels[rows])
                means = [values[rows][labels[rows] == c].mean() for c in classes]
                results.append(np.mean(means))
    return np.array(results)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 12), st.booleans())
def test_distribution__equals_brute_force(
    seed: int, num_samples: int, num_groups: int, per_class: bool
) -> None:
    random = np.random.default_rng(seed)
    values = random.random(num_samples)
    groups = random.integers(0, num_groups, num_samples)
    labels = random.integers(0, 4, num_samples) if per_class else None
    fast = bootstrap_distribution(
        values,
        groups,
        statistic="mean_per_class" if per_class else "mean",
        labels=labels,
        num_resamples=20,
        seed=seed,
    )
    slow = brute_force(values, groups, labels, seed=seed, resamples=20)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-12)


def test_distribution__same_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_distribution(values, num_resamples=30)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 120)
    np.testing.assert_allclose(bootstrap_distribution(values, num_resamples=30), whole)


def test_interval__covers_at_its_rate() -> None:
    """Over 300 simulated data sets, the 95 % interval holds the truth about 95 % of the time."""
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        drawings = random.random(80)  # each drawing has its own difficulty; the truth is 0.5
        groups = np.repeat(np.arange(80), 5)
        values = (random.random(400) < drawings[groups]).astype(float)
        low, high = interval(values, groups, num_resamples=300, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_interval__by_image_is_too_narrow_when_images_share_drawings() -> None:
    random = np.random.default_rng(2)
    groups = np.repeat(np.arange(40), 25)
    values = (random.random(1000) < random.random(40)[groups]).astype(float)
    by_drawing, by_image = interval(values, groups), interval(values)
    assert by_drawing[1] - by_drawing[0] > 2 * (by_image[1] - by_image[0])


def test_interval__leaves_nan_out_and_is_reproducible() -> None:
    values = np.array([1.0, np.nan, 0.0, 1.0, np.nan, 0.0])
    assert interval(values, seed=3) == interval(values[~np.isnan(values)], seed=3)


def test_interval__constant_outcomes_have_no_width() -> None:
    assert interval(np.ones(10)) == (1.0, 1.0)


def test_interval__two_thousand_samples_take_no_time() -> None:
    random = np.random.default_rng(0)
    values, groups = random.random(2000), random.integers(0, 277, 2000)
    interval(values, groups)
    start = time.perf_counter()
    interval(values, groups)
    assert time.perf_counter() - start < 1.0  # about 0.01 s on an idle core


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [np.nan]}, "nothing|no outcome to resample"),
        ({"values": [1.0], "statistic": "mean_per_class"}, "needs the label"),
        ({"values": [1.0], "statistic": "none"}, "'none' has no bootstrap interval"),
    ],
)
def test_interval__refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interval(**arguments)  # type: ignore[arg-type]


def outcomes(values: np.ndarray, *, groups: np.ndarray | None = None) -> pd.DataFrame:
    index = np.arange(len(values))
    return pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in index],
            "group": index if groups is None else groups,
            "m": values,
            "label": index % 3,
        }
    )


def test_paired_test__sees_a_small_steady_difference() -> None:
    random = np.random.default_rng(0)
    base = random.random(600)
    ours = base + 0.02 + 0.05 * random.standard_normal(600)
    result = paired_test(outcomes(ours), outcomes(base), "m")
    assert result.low < result.difference < result.high
    assert result.low > 0
    assert result.p_value == pytest.approx(1 / 2001)
    assert result.difference == pytest.approx(np.mean(ours - base))
    assert (result.num_samples, result.num_groups) == (600, 600)


def test_paired_test__order_of_rows_does_not_matter() -> None:
    random = np.random.default_rng(1)
    a, b = outcomes(random.random(30)), outcomes(random.random(30))
    shuffled = b.sample(frac=1, random_state=0)
    assert paired_test(a, b, "m") == paired_test(a, shuffled, "m")


def test_paired_test__p_value_is_uniform_without_a_difference() -> None:
    random = np.random.default_rng(2)
    p_values = []
    for trial in range(200):
        a, b = outcomes(random.random(40)), outcomes(random.random(40))
        p_values.append(paired_test(a, b, "m", num_resamples=200, seed=trial).p_value)
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10
    assert 0.4 <= np.mean(p_values) <= 0.6


def test_paired_test__exact_p_value_of_few_groups() -> None:
    """Three groups of equal differences: of 8 sign patterns 2 are as extreme, so p is 1/4."""
    groups = np.repeat([0, 1, 2], 4)
    a, b = outcomes(np.ones(12), groups=groups), outcomes(np.zeros(12), groups=groups)
    result = paired_test(a, b, "m", num_resamples=20_000)
    assert result.p_value == pytest.approx(0.25, abs=0.01)


def test_paired_test__mean_per_class_by_hand() -> None:
    a = outcomes(np.array([1.0, 1.0, 0.0, 1.0]))  # labels 0 1 2 0
    b = outcomes(np.zeros(4))
    result = paired_test(a, b, "m", statistic="mean_per_class")
    assert result.difference == pytest.approx((1 + 1 + 0) / 3)


def test_paired_test__leaves_nan_out() -> None:
    a = outcomes(np.array([1.0, np.nan, 0.0]))
    b = outcomes(np.array([0.0, np.nan, 0.0]))
    result = paired_test(a, b, "m")
    assert result.num_samples == 2
    assert result.difference == 0.5


def test_paired_test__different_samples() -> None:
    a, b = outcomes(np.ones(3)), outcomes(np.ones(4))
    with pytest.raises(DataError, match=r"3 and 4, of which 3 are shared. Delete both records"):
        paired_test(a, b, "m")


def test_paired_test__no_outcomes() -> None:
    a = outcomes(np.ones(3))
    with pytest.raises(ValueError, match="'m' has no per-sample outcomes"):
        paired_test(a, a, "m", statistic="none")


def test_compare_seeds__equals_the_t_test() -> None:
    from scipy import stats

    a, b = [0.42, 0.45, 0.44], [0.40, 0.41, 0.43]
    result = compare_seeds(a, b)
    expected = stats.ttest_rel(a, b)
    low, high = expected.confidence_interval(0.95)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert (result.low, result.high) == pytest.approx((low, high))
    assert result.num_samples == 3


def test_compare_seeds__no_spread() -> None:
    assert compare_seeds([0.5, 0.5], [0.5, 0.5]).p_value == 1.0
    assert compare_seeds([0.75, 0.75], [0.5, 0.5]).p_value == 0.0


def test_compare_seeds__one_seed() -> None:
    with pytest.raises(ValueError, match="same two or more seeds in both rows; got 1 and 1"):
        compare_seeds([0.5], [0.4])
