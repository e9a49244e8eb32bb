from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from maskclip_bench.errors import DataError
from maskclip_bench.results.paired import Comparison, compare_seeds, holm, paired_test


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
    assert result.p_value == pytest.approx(1 / 10_000)
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
    result = paired_test(a, b, "m")
    assert result.p_value == 0.25


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
    with pytest.raises(DataError, match=r"3 and 4, of which 3 are common. Delete both records"):
        paired_test(a, b, "m")


def test_paired_test__no_outcomes() -> None:
    a = outcomes(np.ones(3))
    with pytest.raises(ValueError, match="'m' has no per-sample outcomes"):
        paired_test(a, a, "m", statistic="none")


def test_compare_seeds__equals_the_t_test() -> None:
    a, b = [0.42, 0.45, 0.44], [0.40, 0.41, 0.43]
    result = compare_seeds(a, b)
    expected = stats.ttest_rel(a, b)
    low, high = expected.confidence_interval(0.95)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert (result.low, result.high) == pytest.approx((low, high))
    assert result.num_samples == 3


def test_compare_seeds__the_spread_of_all_rows_together_by_hand() -> None:
    rows = [[0.42, 0.45, 0.44], [0.40, 0.41, 0.43], [0.30, 0.33, 0.31], [0.50, 0.55, 0.51]]
    result = compare_seeds(rows[0], rows[1], others=rows[2:])
    values = np.array(rows)
    fitted = values.mean(1)[:, None] + values.mean(0)[None] - values.mean()
    error = np.sqrt(((values - fitted) ** 2).sum() / 6 * 2 / 3)
    assert result.difference == pytest.approx(0.07 / 3)
    assert result.p_value == pytest.approx(2 * stats.t.sf(0.07 / 3 / error, 6))
    assert result.high - result.low == pytest.approx(2 * stats.t.ppf(0.975, 6) * error)


def test_compare_seeds__no_spread() -> None:
    assert compare_seeds([0.5, 0.5], [0.5, 0.5]).p_value == 1.0
    # No spread was seen in three seeds: of 8 sign patterns 2 are as extreme.
    assert compare_seeds([0.75] * 3, [0.5] * 3).p_value == 0.25


def test_compare_seeds__one_seed() -> None:
    with pytest.raises(ValueError, match="same two or more seeds in all rows; got 1 and 1"):
        compare_seeds([0.5], [0.4])


def test_paired_test__other_groups_or_labels_are_other_data() -> None:
    a = outcomes(np.ones(6))
    with pytest.raises(DataError, match="the column 'label' of their outcomes differs"):
        paired_test(a, a.assign(label=0), "m")
    with pytest.raises(DataError, match="the column 'group' of their outcomes differs"):
        paired_test(a, a.assign(group="x"), "m")


def test_paired_test__one_group_knows_nothing() -> None:
    groups = np.zeros(20)
    result = paired_test(
        outcomes(np.ones(20), groups=groups), outcomes(np.zeros(20), groups=groups), "m"
    )
    assert (result.low, result.high, result.p_value) == (-1.0, 1.0, 1.0)


def test_paired_test__hits_are_mcnemar_s_exact_test() -> None:
    a, b = np.zeros(200), np.zeros(200)
    a[:30], b[20:42] = 1, 1  # 20 only a, 12 only b
    result = paired_test(outcomes(a), outcomes(b), "m")
    assert result.p_value == pytest.approx(stats.binomtest(12, 32).pvalue)


def test_paired_test__no_sample_differs_and_the_interval_has_a_width() -> None:
    result = paired_test(outcomes(np.ones(50)), outcomes(np.ones(50)), "m")
    assert result.difference == 0
    assert result.low < -0.01
    assert result.high > 0.01
    assert result.p_value == 1


def test_paired_test__fifty_thousand_samples_take_no_time() -> None:
    random = np.random.default_rng(0)
    a, b = ((random.random(50_000) < 0.7).astype(float) for _ in range(2))
    tables = outcomes(a), outcomes(b)
    start = time.perf_counter()
    paired_test(*tables, "m")
    assert time.perf_counter() - start < 2.0


def scored(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> pd.DataFrame:
    return outcomes(scores, groups=groups).assign(label=labels)


def test_paired_test__roc_auc_equals_delong_by_hand() -> None:
    random = np.random.default_rng(3)
    labels = np.arange(60) % 2
    first, second = labels + random.normal(size=60), 0.5 * labels + random.normal(size=60)
    result = paired_test(scored(first, labels), scored(second, labels), "m", statistic="roc_auc")
    spreads = []
    values = []
    for scores in (first, second):
        above = (scores[labels == 1][:, None] > scores[labels == 0][None]).astype(float)  # [P, N]
        values.append(above.mean())
        spreads.append((above.mean(1), above.mean(0)))
    variance = sum(
        ((x - y - (values[0] - values[1])) ** 2).sum() / 30**2
        for x, y in zip(spreads[0], spreads[1], strict=True)
    )
    variance *= 60 / 59
    assert result.difference == pytest.approx(values[0] - values[1])
    p_value = 2 * stats.t.sf(abs(result.difference) / np.sqrt(variance), 59)
    assert result.p_value == pytest.approx(p_value)


def test_paired_test__mean_of_columns_pairs_both_directions() -> None:
    random = np.random.default_rng(4)

    def table(hits: np.ndarray) -> pd.DataFrame:
        frame = outcomes(np.zeros(60), groups=np.arange(60) % 20)
        frame["there"] = np.where(np.arange(60) < 20, hits, np.nan)
        frame["back"] = np.where(np.arange(60) < 20, np.nan, hits)
        return frame

    a, b = (random.random(60) < 0.9).astype(float), (random.random(60) < 0.4).astype(float)
    result = paired_test(
        table(a), table(b), "mean", statistic="mean_of_columns", columns=["there", "back"]
    )
    expected = (a[:20].mean() + a[20:].mean() - b[:20].mean() - b[20:].mean()) / 2
    assert result.difference == pytest.approx(expected)
    assert result.p_value < 0.01
    assert result.num_groups == 20


def ratio_table(numerators: np.ndarray, denominators: np.ndarray) -> pd.DataFrame:
    """Of sums [S, C], each sample a group."""
    frame = outcomes(np.zeros(len(numerators)))
    frame["m.numerator"], frame["m.denominator"] = list(numerators), list(denominators)
    return frame


def test_paired_test__ratios_equal_exchanging_group_by_group() -> None:
    """Every one of 2^7 exchanges, made plainly; two classes are in one group each, in odd sizes."""
    random = np.random.default_rng(6)
    sizes = random.random((2, 7, 4)) * 0.3
    sizes[:, 1:, 2] = 0
    sizes[0, :, 3] = 0
    sizes[1, :6, 3] = 0
    hits = sizes * random.random((2, 7, 4))

    def ratio(rows: Sequence[int]) -> float:
        """Of the groups 0 to 6, each taken from row 0 or 1."""
        groups = range(7)
        ratios = []
        for label in range(4):
            whole = sum(sizes[row, group, label] for row, group in zip(rows, groups, strict=True))
            part = sum(hits[row, group, label] for row, group in zip(rows, groups, strict=True))
            ratios += [part / whole] if whole > 0 else []
        return float(np.mean(ratios))

    exchanges = list(itertools.product((0, 1), repeat=7))
    found = [ratio(rows) - ratio([1 - row for row in rows]) for rows in exchanges]
    a, b = (ratio_table(hits[row], sizes[row]) for row in (0, 1))
    result = paired_test(a, b, "m", statistic="mean_ratio")
    assert result.difference == pytest.approx(found[0], abs=1e-12)
    expected = np.mean(np.abs(found) >= abs(found[0]) - 1e-12)
    assert result.p_value == pytest.approx(expected, abs=1e-12)


def test_comparison__reversed_is_the_test_of_the_other_order() -> None:
    random = np.random.default_rng(7)
    hits, sizes = random.random((2, 30, 3)), random.random((2, 30, 3)) + 1
    a, b = (ratio_table(hits[row], sizes[row]) for row in (0, 1))
    for statistic, name in (("mean_ratio", "m"), ("mean", "m")):
        a["m"], b["m"] = random.random(30), random.random(30)
        there = paired_test(a, b, name, statistic=statistic)
        back = paired_test(b, a, name, statistic=statistic).reversed
        for field in ("difference", "low", "high", "p_value"):
            assert getattr(back, field) == pytest.approx(getattr(there, field), abs=1e-12)


def test_holm__by_hand_and_never_above_one() -> None:
    assert holm([]) == []
    assert holm([0.02]) == [0.02]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.0, 0.0]) == [0.0, 0.0]


def test_holm__equals_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = np.random.default_rng(5).random(30) ** 3
    assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])


def test_comparison__is_a_value() -> None:
    assert Comparison(0.1, 0.0, 0.2, 0.05, 10, 10) == Comparison(0.1, 0.0, 0.2, 0.05, 10, 10)
