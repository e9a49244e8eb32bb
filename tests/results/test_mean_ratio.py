"""The statistic of an mIoU: ratios of sums per class, averaged; by hand, and against loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from maskclip_bench.errors import DataError
from maskclip_bench.results.intervals import metric_interval
from maskclip_bench.results.measurement import Measurement, Metric, statistic_value
from maskclip_bench.results.outcome_columns import mean_ratio, ratio_outcomes
from maskclip_bench.results.paired import paired_test
from maskclip_bench.results.records import _metric_record


def outcomes(numerators: list, denominators: list, ids: list[str] | None = None) -> pd.DataFrame:
    names = ids or [f"image{index}" for index in range(len(numerators))]
    return pd.DataFrame(
        {
            "sample_id": names,
            "group": names,
            "mean_iou.numerator": numerators,
            "mean_iou.denominator": denominators,
        }
    )


def random_outcomes(seed: int, num_images: int = 30) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    union = generator.integers(1, 50, (num_images, 4))
    right = (union * generator.uniform(0.3, 0.9, (num_images, 4))).astype(int)
    return outcomes(list(right), list(union))


def test_statistic__by_hand() -> None:
    table = outcomes([[2, 0, 0], [1, 3, 0]], [[4, 0, 0], [2, 4, 0]])
    # class 0: 3 / 6, class 1: 3 / 4, class 2 never occurs
    assert statistic_value(table, "mean_iou", "mean_ratio") == pytest.approx((0.5 + 0.75) / 2)
    assert mean_ratio(np.zeros(3), np.zeros(3)) == 0


def test_statistic__rows_without_a_list_are_not_measured() -> None:
    table = outcomes([[2], None, [1]], [[4], None, [1]])
    numerators, _, measured = ratio_outcomes(table, "mean_iou")
    assert numerators.tolist() == [[2], [1]]
    assert measured.tolist() == [True, False, True]


def test_measurement__checks_the_value() -> None:
    table = outcomes([[2]], [[4]])
    metric = Metric(0.5, statistic="mean_ratio")
    Measurement({"mean_iou": metric}, "mean_iou", table, preset="p")
    with pytest.raises(ValueError, match=r"the mean_ratio of its outcome column is 0\.500000"):
        Measurement(
            {"mean_iou": Metric(0.6, statistic="mean_ratio")}, "mean_iou", table, preset="p"
        )


@pytest.mark.parametrize(
    ("numerators", "denominators", "message"),
    [
        ([None], [None], "hold no list"),
        ([[1], [1]], [[1], None], "1 rows hold only some of the lists"),
        ([[float("nan")]], [[1]], "holds numbers that are not finite"),
        ([[2]], [[1]], "below 0 or above its denominator"),
        ([[-1]], [[1]], "below 0 or above its denominator"),
        ([1.0], [1.0], "needs a list, one entry a class"),
        ([[1, 2], [1]], [[1, 2], [1]], "needs a list of one length"),
        ([[1, 2]], [[1]], "lists of 2 and 1 entries"),
    ],
)
def test_ratio_outcomes__bad_columns(numerators: list, denominators: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratio_outcomes(outcomes(numerators, denominators), "mean_iou")


def test_ratio_outcomes__absent_columns() -> None:
    with pytest.raises(ValueError, match=r"missing \['box_ap.numerator', 'box_ap.denominator'\]"):
        ratio_outcomes(outcomes([[1]], [[1]]), "box_ap")


def interval_of(table: pd.DataFrame) -> tuple[float, float]:
    found = metric_interval(table, "mean_iou", "mean_ratio", num_resamples=400)
    assert found is not None
    return found.low, found.high


def test_interval__is_as_wide_as_the_percentiles_of_resamples() -> None:
    table = random_outcomes(0)
    low, high = interval_of(table)
    generator = np.random.default_rng(3)
    drawn = generator.integers(0, 30, size=(400, 30))
    values = [
        statistic_value(table.iloc[rows].reset_index(drop=True), "mean_iou", "mean_ratio")
        for rows in drawn
    ]
    percentiles = np.quantile(values, [0.025, 0.975])
    assert high - low == pytest.approx(percentiles[1] - percentiles[0], rel=0.2)
    assert low < statistic_value(table, "mean_iou", "mean_ratio") < high


def test_interval__whole_groups_are_resampled() -> None:
    table = pd.concat([random_outcomes(0)] * 2, ignore_index=True)
    table["sample_id"] = [f"copy{index}" for index in range(len(table))]
    assert interval_of(table) == pytest.approx(interval_of(random_outcomes(0)))


def test_interval__every_pixel_right_has_a_width() -> None:
    low, high = interval_of(outcomes([[4, 4]] * 20, [[4, 4]] * 20))
    assert high == 1.0
    assert low < 0.9


def test_record__has_interval_and_counts() -> None:
    table = random_outcomes(1)
    value = statistic_value(table, "mean_iou", "mean_ratio")
    assert value is not None
    record = _metric_record(
        "mean_iou", Metric(value, statistic="mean_ratio"), table, 200, label=None
    )
    assert record.low is not None and record.high is not None
    assert record.low < record.value < record.high
    assert (record.num_samples, record.num_groups) == (30, 30)


def test_paired__same_rows_in_any_order_do_not_differ() -> None:
    table = random_outcomes(2)
    shuffled = table.sample(frac=1.0, random_state=0).reset_index(drop=True)
    result = paired_test(table, shuffled, "mean_iou", statistic="mean_ratio", num_resamples=200)
    assert (result.difference, result.low, result.high) == (0, 0, 0)
    assert result.p_value == 1


def test_paired__better_row_is_found() -> None:
    table = random_outcomes(3)
    better = table.copy()
    better["mean_iou.numerator"] = [
        np.minimum(top + 4, bottom)
        for top, bottom in zip(
            table["mean_iou.numerator"], table["mean_iou.denominator"], strict=True
        )
    ]
    result = paired_test(better, table, "mean_iou", statistic="mean_ratio", num_resamples=500)
    assert result.low > 0
    assert result.p_value is not None and result.p_value < 0.01
    opposite = paired_test(table, better, "mean_iou", statistic="mean_ratio", num_resamples=500)
    assert opposite.difference == pytest.approx(-result.difference)
    assert opposite.p_value == pytest.approx(result.p_value)


def test_paired__different_rows_measured() -> None:
    table = outcomes([[1], [1]], [[2], [2]])
    other = outcomes([[1], None], [[2], None])
    with pytest.raises(DataError, match="measured on different samples of 'mean_iou'"):
        paired_test(table, other, "mean_iou", statistic="mean_ratio", num_resamples=10)
