from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.results import suite_figures
from maskclip_bench.results.ranking import RankInterval
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.suite_figures import (
    CostPoint,
    draw_costs,
    draw_critical_difference,
    draw_score_against_cost,
    read_costs,
)
from maskclip_bench.results.suite_statistics import SuiteStatistics, suite_statistics

Save = Callable[..., Record]
TASKS = ("knn/demo_objects", "linear_probe/demo_objects", "few_shot/demo_objects")


@pytest.fixture
def found(save: Save, store: RecordStore) -> SuiteStatistics:
    for index, task in enumerate(TASKS):
        for row, hits in (("worst", 2), ("good", 30), ("better", 32)):
            save(row, task, hits + index, preset=task)
    save("good", "retrieval/demo_captions", preset="p")
    return suite_statistics(store.all(), store, names={"good": "Good"}, num_resamples=500)


def test_suite__ranks_ties_and_wins(found: SuiteStatistics) -> None:
    assert found.rows == ("Good", "better", "worst")
    assert found.mean_ranks.tolist() == [2.0, 1.0, 3.0]
    assert found.win_rates.tolist() == [[0.5, 0.0, 1.0], [1.0, 0.5, 1.0], [0.0, 0.0, 0.5]]
    assert found.left_out == ("retrieval/demo_captions",)
    assert (found.rank_low <= found.mean_ranks).all()
    assert (found.mean_ranks <= found.rank_high).all()
    assert found.rank_high[2] == 3.0
    assert 1 < found.critical_difference < 2
    assert found.ties == ((1, 0), (0, 2))
    (task, *_) = found.tasks
    assert task.task == "few_shot/demo_objects"
    assert task.ranks == (RankInterval(1, 2), RankInterval(1, 2), RankInterval(3, 3))
    assert task.ties == ((1, 0), (2,))
    assert task.smallest_difference is not None
    assert 0 < task.smallest_difference < 1
    assert task.variance[0] is not None
    assert task.variance[0].seeds is None


def test_suite__as_json(found: SuiteStatistics) -> None:
    values = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [row["name"] for row in values["rows"]] == ["Good", "better", "worst"]
    assert values["ties"] == [["better", "Good"], ["Good", "worst"]]
    assert values["tasks"][0]["ranks"] == [[1, 2], [1, 2], [3, 3]]


def test_suite__over_seeds_and_where_lower_is_better(save: Save, store: RecordStore) -> None:
    for seed in range(3):
        for row, hits in (("a", 4 + seed % 2), ("b", 30 - seed)):
            save(row, TASKS[0], hits, seed=seed, metric="error", higher_is_better=False)
    found = suite_statistics(store.all(), store, num_resamples=100)
    assert found.rows[int(np.argmin(found.mean_ranks))] == "a"
    assert found.tasks[0].ties == ((0,), (1,))
    split = found.tasks[0].variance[0]
    assert split is not None
    assert split.seeds is not None


def test_suite__a_metric_without_outcomes_counts_as_it_is(save: Save, store: RecordStore) -> None:
    for row, hits in (("a", 10), ("b", 20)):
        save(row, TASKS[0], hits, statistic="none")
    (task,) = suite_statistics(store.all(), store, num_resamples=50).tasks
    assert task.smallest_difference is None
    assert task.variance == (None, None)
    assert task.ranks == (RankInterval(1, 2), RankInterval(1, 2))


def test_suite__one_row_or_no_task_in_common(save: Save, store: RecordStore) -> None:
    save("a")
    with pytest.raises(DataError, match="1 rows have 1 tasks in common"):
        suite_statistics(store.all(), store)
    save("b", TASKS[1], preset="p")
    with pytest.raises(DataError, match="2 rows have 0 tasks in common"):
        suite_statistics(store.all(), store)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures__are_drawn_and_the_same_twice(
    found: SuiteStatistics, tmp_path: Path, suffix: str
) -> None:
    for name in ("a", "b"):
        draw_critical_difference(found, tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    if suffix == "svg":
        assert ">Good  2.00<" in (tmp_path / "a.svg").read_text()


def test_costs__from_a_file(found: SuiteStatistics, tmp_path: Path) -> None:
    costs = tmp_path / "costs.csv"
    costs.write_text("backbone,gpu_hours\ngood,1\nbetter,2\nworst,4\n")
    kind, known = read_costs(costs)
    assert (kind, known) == ("gpu_hours", {"good": 1, "better": 2, "worst": 4})
    assert draw_costs(found, known, tmp_path / "cost.svg", cost=kind) == []
    assert "GPU-hours of pretraining" in (tmp_path / "cost.svg").read_text()
    costs.write_text("backbone,price\ngood,1\n")
    with pytest.raises(DataError, match="it needs backbone and one of"):
        read_costs(costs)
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_costs(tmp_path / "nothing.csv")


def test_costs__a_row_without_one_and_a_row_that_cost_nothing(
    found: SuiteStatistics, tmp_path: Path
) -> None:
    path = tmp_path / "cost.svg"
    with pytest.raises(DataError, match="No cost is given of better, worst"):
        draw_costs(found, {"good": 1}, path, cost="gpu_hours")
    free = draw_costs(found, {"good": 1, "better": 2, "worst": 0}, path, cost="images_seen")
    assert free == [found.rows[found.backbones.index("worst")]]
    assert free[0] not in path.read_text()


def test_costs__not_above_zero_and_no_figure(tmp_path: Path) -> None:
    point = CostPoint("x[/bold]$", 0.0, 0.5, 0.4, 0.6)
    with pytest.raises(DataError, match="No parameters of the image encoder is known"):
        draw_score_against_cost([point], tmp_path / "a.svg", cost="parameters", score="s")
    with pytest.raises(ConfigError, match=r"'a\.gif': a figure is \.png, \.svg or \.pdf"):
        draw_score_against_cost(
            [CostPoint("x$y$_^", 1.0, 0.5, 0.4, 0.6)],
            tmp_path / "a.gif",
            cost="parameters",
            score="s",
        )


def test_pareto_front__example() -> None:
    import doctest

    assert doctest.testmod(suite_figures).failed == 0
