from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from maskclip_bench.results.measurement import Measurement, Metric, statistic_value


def outcomes(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"sample_id": ["a", "b", "c"], "group": ["x", "x", "y"], **columns})


def test_metric__refuses_percent() -> None:
    with pytest.raises(ValueError, match=r"63.3; records hold fractions from 0 to 1. Divide"):
        Metric(63.3)


def test_metric__refuses_nan() -> None:
    with pytest.raises(ValueError, match="records hold fractions"):
        Metric(float("nan"))


def test_metric__refuses_chance_in_percent() -> None:
    with pytest.raises(ValueError, match=r"A chance level is 1.6"):
        Metric(0.5, chance_level=1.6)


def test_metric__cuts_rounding() -> None:
    assert Metric(1 + 1e-9).value == 1.0


def test_metric__unknown_statistic() -> None:
    with pytest.raises(ValueError, match=r"'median' is not a statistic. Use one of mean, "):
        Metric(0.5, statistic="median")  # type: ignore[arg-type]


def test_measurement__holds_value_against_outcomes() -> None:
    table = outcomes(top1_accuracy=[1.0, 0.0, 1.0])
    Measurement({"top1_accuracy": Metric(2 / 3)}, "top1_accuracy", table, "dino_knn")
    with pytest.raises(ValueError, match=r"0.500000, but the mean of its outcome column is 0.6666"):
        Measurement({"top1_accuracy": Metric(0.5)}, "top1_accuracy", table, "dino_knn")


def test_measurement__mean_per_class_by_hand() -> None:
    table = outcomes(accuracy=[1.0, 0.0, 1.0], label=[0, 0, 1])
    metric = Metric(0.75, statistic="mean_per_class")  # (1/2 + 1) / 2
    Measurement({"accuracy": metric}, "accuracy", table, "p")


def test_measurement__nan_does_not_count() -> None:
    table = outcomes(recall=[1.0, np.nan, 0.0])
    assert statistic_value(table, "recall", "mean") == 0.5


def test_measurement__statistic_none_needs_no_column() -> None:
    Measurement({"box_ap": Metric(0.3, statistic="none")}, "box_ap", outcomes(), "p")


@pytest.mark.parametrize(
    ("table", "statistic", "message"),
    [
        (outcomes(), "mean", "No outcome column 'm'"),
        (outcomes(m=[np.nan] * 3), "mean", "'m' holds only NaN"),
        (outcomes(m=[1.0, 1.0, 1.0]), "mean_per_class", "the outcomes need a column 'label'"),
        (pd.DataFrame({"sample_id": ["a"], "m": [1.0]}), "mean", r"lack the columns \['group'\]"),
        (outcomes(m=[1.0] * 3).iloc[:0], "mean", "no row: nothing was measured"),
        (outcomes(m=[2.0, 1.0, 0.0]), "mean", "'m' holds 2, and outcomes are fractions"),
        (outcomes(m=[1.0] * 3).assign(group=None), "mean", "3 of 3 rows .* have no 'group'"),
        (outcomes(m=[1.0] * 3, label=[0, 1, None]), "mean_per_class", "1 of 3 .* have no 'label'"),
        (outcomes(m=[0.5] * 3), "geometric_mean", "logarithms above 0"),
        (
            pd.DataFrame({"sample_id": ["a", "a"], "group": ["x", "y"], "m": [1.0, 1.0]}),
            "mean",
            "'a' stands twice",
        ),
    ],
)
def test_measurement__parts_that_do_not_fit(
    table: pd.DataFrame, statistic: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        columns = ("m",) if statistic == "geometric_mean" else ()
        metric = Metric(1.0, statistic=statistic, columns=columns)  # type: ignore[arg-type]
        Measurement({"m": metric}, "m", table, "p")


def test_measurement__primary_metric_must_exist() -> None:
    with pytest.raises(ValueError, match="'top1' is not among the metrics"):
        Measurement({"top1_accuracy": Metric(0.5)}, "top1", outcomes(), "p")


def test_statistic__an_infinite_outcome() -> None:
    table = pd.DataFrame({"sample_id": ["a", "b"], "group": "x", "m": [1.0, np.inf]})
    with pytest.raises(ValueError, match="'m' holds an infinite number"):
        statistic_value(table, "m", "mean")


def test_statistic__a_column_of_words() -> None:
    table = pd.DataFrame({"sample_id": ["a", "b"], "group": "x", "m": ["a", "b"]})
    with pytest.raises(ValueError, match="'m' holds no numbers"):
        statistic_value(table, "m", "mean")


def test_statistic__mean_of_columns_by_hand() -> None:
    nan = np.nan
    table = pd.DataFrame(
        {"sample_id": list("abc"), "group": "x", "there": [1.0, nan, nan], "back": [nan, 0.0, 1.0]}
    )
    assert statistic_value(table, "m", "mean_of_columns", ["there", "back"]) == 0.75


def test_metric__columns_belong_to_one_statistic() -> None:
    with pytest.raises(ValueError, match=r"mean_of_columns needs some; .* takes"):
        Metric(0.5, statistic="mean_of_columns")
    with pytest.raises(ValueError, match="came with the columns"):
        Metric(0.5, columns=("a",))
