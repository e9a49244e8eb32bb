from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from maskclip_bench.results.intervals import mean_interval, metric_interval, per_class_interval
from maskclip_bench.results.proportions import mid_p_interval


def table(values: np.ndarray, groups: np.ndarray | None = None, **columns: object) -> pd.DataFrame:
    index = np.arange(len(values))
    return pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in index],
            "group": index if groups is None else groups,
            "m": values,
            **columns,
        }
    )


def test_mean__hits_without_groups_are_exact() -> None:
    values = np.r_[np.ones(30), np.zeros(20)]
    found = metric_interval(table(values), "m", "mean")
    assert found is not None
    assert (found.low, found.high) == mid_p_interval(30, 50)
    assert (found.method, found.num_samples, found.num_groups) == ("mid_p", 50, 50)


def test_mean__images_of_one_drawing_widen_it() -> None:
    random = np.random.default_rng(2)
    groups = np.repeat(np.arange(40), 25)
    values = (random.random(1000) < random.random(40)[groups]).astype(float)
    by_drawing, by_image = mean_interval(values, groups), mean_interval(values)
    assert by_drawing.high - by_drawing.low > 2 * (by_image.high - by_image.low)
    assert by_drawing.method == "wilson"
    assert (by_drawing.num_samples, by_drawing.num_groups) == (1000, 40)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_mean__keeps_its_width_at_the_ends(value: float) -> None:
    alone = mean_interval(np.full(100, value))
    assert alone.high - alone.low == pytest.approx(0.0295, abs=1e-3)
    grouped = mean_interval(np.full(100, value), np.arange(100) // 10)
    assert grouped.high - grouped.low > 0.2  # as if each of the ten groups were one sample
    assert value in (grouped.low, grouped.high)


def test_mean__few_groups_widen_it() -> None:
    values = (np.arange(60) % 3 > 0).astype(float)
    few, many = (
        mean_interval(values, np.arange(60) // 20),
        mean_interval(values, np.arange(60) // 2),
    )
    assert few.high - few.low > many.high - many.low


def test_mean__fractions_of_a_few_draws() -> None:
    values = np.random.default_rng(0).integers(0, 6, 500) / 5
    found = mean_interval(values)
    assert found.method == "wilson"
    expected = 1.96 * values.std() / np.sqrt(500)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.03)


def test_mean__one_group_knows_little() -> None:
    found = mean_interval(np.array([1.0, 0.0, 1.0]), np.zeros(3))
    assert found.low < 0.15
    assert found.high > 0.9


def test_mean__leaves_nan_out() -> None:
    values = np.array([1.0, np.nan, 0.0, 1.0, np.nan, 0.0])
    found = metric_interval(table(values), "m", "mean")
    assert found is not None
    assert (found.low, found.high) == mid_p_interval(2, 4)
    assert found.num_samples == 4


def test_mean__nothing() -> None:
    with pytest.raises(ValueError, match="no outcome to make an interval of"):
        mean_interval(np.array([]))


def test_per_class__has_a_width_at_one_and_counts() -> None:
    values, groups = np.ones(60), np.arange(60) // 3
    found = per_class_interval(values, groups, np.arange(60) // 6)
    assert found.high == 1.0
    assert found.low < 0.9
    assert (found.method, found.num_samples, found.num_groups) == ("wilson_bootstrap", 60, 20)


def test_per_class__reproducible_and_close_to_the_mean_of_balanced_classes() -> None:
    random = np.random.default_rng(0)
    values = (random.random(1200) < 0.4).astype(float)
    classes = np.arange(1200) % 4
    found = per_class_interval(values, np.arange(1200), classes)
    assert found == per_class_interval(values, np.arange(1200), classes)
    plain = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.004)


def test_mean_of_columns__groups_hold_both_directions() -> None:
    hits = np.random.default_rng(1).random(60) < 0.5
    frame = table(np.zeros(60), np.arange(60) % 20)
    frame["there"] = np.where(np.arange(60) < 20, hits, np.nan)
    frame["back"] = np.where(np.arange(60) < 20, np.nan, hits)
    found = metric_interval(frame, "mean", "mean_of_columns", ["there", "back"])
    assert found is not None
    value = (hits[:20].mean() + hits[20:].mean()) / 2
    assert found.low < value < found.high
    assert (found.num_samples, found.num_groups) == (60, 20)


def test_none__has_no_interval() -> None:
    assert metric_interval(table(np.ones(3)), "m", "none") is None


def test_interval__takes_milliseconds() -> None:
    random = np.random.default_rng(0)
    frame = table((random.random(50_000) < 0.8).astype(float))
    start = time.perf_counter()
    metric_interval(frame, "m", "mean")
    assert time.perf_counter() - start < 0.5  # about 0.02 s on an idle core
