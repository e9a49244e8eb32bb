from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from maskclip_bench.results.auc import group_influence, newcombe_interval
from maskclip_bench.results.intervals import metric_interval
from maskclip_bench.results.measurement import statistic_value


def scored(seed: int, num_rows: int = 80, *, shift: float = 1.0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    labels = np.arange(num_rows) % 2
    ids = [f"s{i}" for i in range(num_rows)]
    scores = np.round(shift * labels + random.normal(size=num_rows), 1)  # with ties
    return pd.DataFrame({"sample_id": ids, "group": ids, "label": labels, "roc_auc": scores})


def test_value__equals_scikit_learn_with_ties() -> None:
    table = scored(0)
    expected = roc_auc_score(table["label"], table["roc_auc"])
    assert statistic_value(table, "roc_auc", "roc_auc") == pytest.approx(expected)
    assert group_influence(table, "roc_auc")[0] == pytest.approx(expected)


def test_influence__sums_to_nothing_and_is_the_jackknife() -> None:
    table = scored(1, 40)
    value, influence, counts = group_influence(table, "roc_auc")
    assert influence.sum() == pytest.approx(0)
    assert counts.sum(axis=0).tolist() == [20, 20]
    without = statistic_value(table.drop(index=3), "roc_auc", "roc_auc")
    assert without is not None
    # Leaving out one of 20 positives moves the AUC by -influence * 20 / 19.
    assert value - without == pytest.approx(influence[3] * 20 / 19)


def test_interval__holds_the_value_and_keeps_a_width_at_one() -> None:
    table = scored(2)
    found = metric_interval(table, "roc_auc", "roc_auc")
    value = statistic_value(table, "roc_auc", "roc_auc")
    assert found is not None and value is not None
    assert found.low < value < found.high
    assert (found.method, found.num_samples, found.num_groups) == ("newcombe", 80, 80)
    perfect = metric_interval(scored(3, shift=50.0), "roc_auc", "roc_auc")
    assert perfect is not None
    assert perfect.low < 0.97
    assert perfect.high == 1.0


def test_interval__groups_widen_it() -> None:
    table = scored(4, 40)
    copies = pd.concat([table] * 4, ignore_index=True)
    copies["sample_id"] = [f"copy{i}" for i in range(160)]
    once, grouped = (metric_interval(t, "roc_auc", "roc_auc") for t in (table, copies))
    alone = metric_interval(copies.assign(group=copies["sample_id"]), "roc_auc", "roc_auc")
    assert once is not None and grouped is not None and alone is not None
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.05)
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


def test_newcombe__symmetric_and_whole_at_one() -> None:
    assert newcombe_interval(1.0, 10, 10, freedom=1e9, confidence=0.95)[1] == 1.0
    low, high = newcombe_interval(0.5, 50, 50, freedom=1e9, confidence=0.95)
    assert low == pytest.approx(1 - high)


def test_value__one_label_only() -> None:
    table = scored(5).assign(label=1)
    with pytest.raises(ValueError, match="needs two labels among its rows; found 1"):
        statistic_value(table, "roc_auc", "roc_auc")
