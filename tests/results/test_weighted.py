"""Statistics under weights: against the plain functions on samples that are repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from maskclip_bench.results.average_precision import CocoAP
from maskclip_bench.results.influence import influence_of
from maskclip_bench.results.intervals import metric_interval
from maskclip_bench.results.measurement import statistic_value
from maskclip_bench.results.outcome_columns import Statistic
from maskclip_bench.results.paired import paired_test
from maskclip_bench.results.proportions import mid_p_interval
from maskclip_bench.results.weighted import (
    CalibrationError,
    GeometricMean,
    WorstGroup,
    calibration_bins,
    effective_number,
)
from maskclip_bench.tasks.metrics import expected_calibration_error, worst_group
from tests.results.detections import drawn_detections


def table(groups: np.ndarray, **columns: object) -> pd.DataFrame:
    ids = [f"s{index}" for index in range(len(groups))]
    return pd.DataFrame({"sample_id": ids, "group": [f"g{g}" for g in groups], **columns})


def answers(seed: int, number: int = 60) -> pd.DataFrame:
    """Confidences, hits and logarithms of 20 groups of three; one row was not measured."""
    random = np.random.default_rng(seed)
    sure = random.random(number)
    hits = (random.random(number) < sure).astype(float)
    sure[4] = np.nan
    logs = np.log(random.random(number))
    return table(np.arange(number) % (number // 3), sure=sure, hits=hits, logs=logs)


def drawn(outcomes: pd.DataFrame, names: Any, times: np.ndarray) -> pd.DataFrame:
    """The rows of each group as often as it was drawn."""
    of_group = dict(zip(names, times.astype(int), strict=True))
    return outcomes.loc[outcomes.index.repeat(outcomes["group"].map(of_group).fillna(0))]


def weights_of(number: int) -> np.ndarray:
    random = np.random.default_rng(3)
    found = [np.bincount(random.integers(0, number, number), minlength=number) for _ in range(3)]
    return np.stack([np.ones(number), *found], axis=1).astype(float)


def test_calibration_error__of_any_resample() -> None:
    outcomes = answers(0)
    statistic = CalibrationError.of(outcomes, ["sure", "hits"])
    weights = weights_of(statistic.num_groups)
    for times, value in zip(weights.T, statistic.values(weights), strict=True):
        rows = drawn(outcomes, statistic.names, times).dropna()
        columns = (rows[name].to_numpy(copy=True) for name in ("sure", "hits"))
        expected = expected_calibration_error(*columns)
        assert value == pytest.approx(expected, abs=1e-12)
    assert statistic.num_samples == 59
    assert statistic.measured.tolist().index(False) == 4


def test_geometric_mean__of_any_resample() -> None:
    outcomes = answers(1)
    statistic = GeometricMean.of(outcomes, ["logs"])
    weights = weights_of(statistic.num_groups)
    for times, value in zip(weights.T, statistic.values(weights), strict=True):
        rows = drawn(outcomes, statistic.names, times)
        assert value == pytest.approx(np.exp(rows["logs"].mean()))


def test_worst_group__of_any_resample_of_samples() -> None:
    outcomes = answers(2, number=12)
    outcomes["hits"] = np.random.default_rng(4).random(12)
    statistic = WorstGroup.of(outcomes, ["hits"])
    weights = weights_of(12)
    for times, value in zip(weights.T, statistic.values(weights), strict=True):
        rows = outcomes.loc[outcomes.index.repeat(times.astype(int))]
        hits = rows["hits"].to_numpy(copy=True)
        assert value == pytest.approx(worst_group(hits, list(rows["group"]))[1])
    assert statistic.num_groups == 12


@pytest.mark.parametrize(
    ("statistic", "columns"),
    [
        ("calibration_error", ["sure", "hits"]),
        ("geometric_mean", ["logs"]),
        ("worst_group", ["hits"]),
    ],
)
def test_influence__is_the_derivative(statistic: Statistic, columns: list[str]) -> None:
    makers: Any = {
        "calibration_error": CalibrationError.of,
        "geometric_mean": GeometricMean.of,
        "worst_group": WorstGroup.of,
    }
    made = makers[statistic](answers(5), columns)
    step = 1e-6
    weights = np.ones((made.num_groups, made.num_groups)) + np.eye(made.num_groups) * step
    assert made.influence() == pytest.approx((made.values(weights) - made.value) / step, abs=1e-5)
    assert made.influence().sum() == pytest.approx(0, abs=1e-12)
    assert statistic_value(answers(5), "m", statistic, columns) == made.value


def test_calibration_bins__ends_belong_to_the_lower_bin() -> None:
    assert calibration_bins(np.array([0.0, 0.2, 0.21, 1.0]), 5).tolist() == [0, 0, 1, 4]


def test_effective_number__by_hand() -> None:
    assert effective_number(np.array([1.0, 1.0, 0.0])) == 2.0
    assert effective_number(np.zeros(3)) == 0.0


def test_interval__of_a_worst_group_is_the_lowest_of_its_kind() -> None:
    outcomes = table(np.repeat([0, 1], 50), hits=np.r_[np.ones(30), np.zeros(20), np.ones(50)])
    found = metric_interval(outcomes, "m", "worst_group", ["hits"])
    assert found is not None
    assert found.low == mid_p_interval(30, 50)[0]
    assert found.high == mid_p_interval(30, 50, confidence=0.975)[1]
    assert (found.method, found.num_samples) == ("lowest_group", 100)
    ties = metric_interval(outcomes.assign(hits=0.5), "m", "worst_group", ["hits"])
    assert ties is not None and ties.low < 0.4 and ties.high > 0.6


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_interval__has_a_width_at_the_ends(value: float) -> None:
    outcomes = table(np.arange(40), sure=1.0, hits=1 - value, right=value, logs=0.0)
    for statistic, columns, end in (
        ("calibration_error", ["sure", "hits"], value),
        ("worst_group", ["right"], value),
        ("geometric_mean", ["logs"], 1.0),
    ):
        found = metric_interval(outcomes, "m", statistic, columns, num_resamples=50)  # type: ignore[arg-type]
        assert found is not None
        assert end in (found.low, found.high)
        assert found.high - found.low > 0.05, statistic


def test_interval__calibrated_answers_may_have_an_error_of_0() -> None:
    outcomes = answers(7).dropna()
    value = statistic_value(outcomes, "m", "calibration_error", ["sure", "hits"])
    found = metric_interval(outcomes, "m", "calibration_error", ["sure", "hits"])
    assert found is not None and value is not None
    assert found.low == 0.0 < 0.05 < value < found.high


def test_interval__the_lower_end_allows_for_the_bias_of_few_samples() -> None:
    outcomes = drawn_detections(np.random.default_rng(1), num_images=40)
    columns = ["box_ap", "box_ap"]
    value = statistic_value(outcomes, "m", "coco_ap", columns)
    found = metric_interval(outcomes, "m", "coco_ap", columns, num_resamples=400)
    assert found is not None and value is not None and found.low > 0
    bias = CocoAP.of(outcomes, columns).resampled(400, seed=0).mean() - value
    assert bias > 0.01
    assert value - found.low == pytest.approx(found.high - value + bias, abs=0.01)


@pytest.mark.parametrize(
    ("statistic", "columns"),
    [("calibration_error", ["sure", "hits"]), ("geometric_mean", ["logs"])],
)
def test_paired__sees_a_difference_and_none(statistic: Statistic, columns: list[str]) -> None:
    random = np.random.default_rng(8)
    sure = random.uniform(0.3, 0.9, 400)
    hits = (random.random(400) < sure).astype(float)
    first = table(np.arange(400) // 2, sure=sure, hits=hits, logs=np.log(sure))
    second = first.assign(sure=np.clip(sure + 0.25, 0, 1), logs=np.log(sure + 0.05))
    result = paired_test(first, second, "m", statistic=statistic, columns=columns)
    assert result.p_value < 0.01
    assert result.low < result.difference < result.high < 0
    opposite = paired_test(second, first, "m", statistic=statistic, columns=columns)
    assert opposite.p_value == pytest.approx(result.p_value)
    assert opposite.difference == pytest.approx(-result.difference)
    same = paired_test(
        first, first.sample(frac=1, random_state=0), "m", statistic=statistic, columns=columns
    )
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.low < 0 < same.high


def test_paired__two_worst_groups() -> None:
    random = np.random.default_rng(9)
    groups = np.repeat([0, 1], 200)
    first = table(groups, hits=(random.random(400) < np.where(groups, 0.5, 0.9)).astype(float))
    second = first.assign(hits=(random.random(400) < np.where(groups, 0.9, 0.8)).astype(float))
    result = paired_test(first, second, "m", statistic="worst_group", columns=["hits"])
    assert result.difference == pytest.approx(-0.3, abs=0.1)
    assert result.p_value < 0.01
    assert result.low < -0.3 < result.high


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (["sure", "absent"], "No outcome column 'absent'"),
        (["logs", "hits"], "and outcomes are fractions from 0 to 1"),
        ([], "a calibration_error takes 2 columns; got"),
    ],
)
def test_columns_that_do_not_fit(columns: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        statistic_value(answers(0), "m", "calibration_error", columns)


DETECTIONS = {"scores": [], "classes": [], "hits": [], "ignored": []}
DEGENERATE: dict[str, tuple[Statistic, list[str], dict[str, Any]]] = {
    "one answer, right and sure": ("calibration_error", ["a", "b"], {"a": [1.0], "b": [1.0]}),
    "one answer, wrong and sure": ("calibration_error", ["a", "b"], {"a": [1.0], "b": [0.0]}),
    "confidence 0": ("calibration_error", ["a", "b"], {"a": [0.0], "b": [0.0]}),
    "probability 1": ("geometric_mean", ["a"], {"a": [0.0]}),
    "probability next to 0": ("geometric_mean", ["a"], {"a": [-1e6]}),
    "one sample of a group": ("worst_group", ["a"], {"a": [1.0]}),
    "one image, shown": ("multi_label_ap", ["a", "b"], {"a": [[0.5]], "b": [[1]]}),
    "no image shows it": ("multi_label_ap", ["a", "b"], {"a": [[0.5]], "b": [[0]]}),
    "not scored": ("multi_label_ap_11", ["a", "b"], {"a": [[0.5]], "b": [[-1]]}),
    "no detection": (
        "coco_ap",
        ["m", "m"],
        {**{f"m.{name}": [[]] for name in DETECTIONS}, "m.objects": [[2]]},
    ),
    "nothing to detect": (
        "coco_ap75",
        ["m", "m"],
        {**{f"m.{name}": [[]] for name in DETECTIONS}, "m.objects": [[0]]},
    ),
}


@pytest.mark.parametrize("copies", [1, 2, 30])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate__has_a_value_an_interval_and_no_star(case: str, copies: int) -> None:
    """One sample, or equal ones: nothing is divided by 0, and nothing is clear."""
    statistic, columns, values = DEGENERATE[case]
    outcomes = table(np.arange(copies), **{name: value * copies for name, value in values.items()})
    value = statistic_value(outcomes, "m", statistic, columns)
    found = metric_interval(outcomes, "m", statistic, columns, num_resamples=20)
    assert value is not None and found is not None
    assert 0 <= found.low <= value <= found.high <= 1
    result = paired_test(outcomes, outcomes, "m", statistic=statistic, columns=columns)
    assert (result.difference, result.p_value) == (0.0, 1.0)
    influence = influence_of(outcomes, "m", statistic, columns)
    assert np.isfinite(influence).all()
