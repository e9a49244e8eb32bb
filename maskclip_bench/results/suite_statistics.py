"""A whole suite: ranks with intervals, ties, who beats whom, power, and where the noise comes from.

Only tasks that all rows have count: a mean over different tasks compares nothing. The intervals of
ranks and win rates are over the test samples; the critical difference is over the tasks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from maskclip_bench.errors import DataError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.results.bootstrap import FloatArray
from maskclip_bench.results.comparing import Comparisons, Side
from maskclip_bench.results.influence import aligned, influence_of, resampled
from maskclip_bench.results.paired import compare_seeds, holm
from maskclip_bench.results.power import smallest_difference_after
from maskclip_bench.results.ranking import (
    Pairs,
    RankInterval,
    critical_difference,
    mean_ranks,
    percentiles,
    rank_intervals,
    tie_groups,
    win_rates,
)
from maskclip_bench.results.record_model import Record
from maskclip_bench.results.records import RecordStore
from maskclip_bench.results.table_model import SIGNIFICANCE
from maskclip_bench.results.variance_split import VarianceSplit, variance_split


@dataclass(frozen=True)
class TaskStatistics:
    """One task, rows in the order of the suite.

    Attributes:
        task: "protocol/dataset".
        values: Score of each row, the mean over its seeds.
        ranks: Of each row, with 95 % for all of them together.
        ties: Groups of rows (indices) that are not told apart, best first.
        smallest_difference: That two rows need to be told apart here in 4 of 5 cases, the mean over
            the pairs; None where the metric has no outcomes.
        variance: Of one training run of each row; None without outcomes.
    """

    task: str
    values: tuple[float, ...]
    ranks: tuple[RankInterval, ...]
    ties: tuple[tuple[int, ...], ...]
    smallest_difference: float | None
    variance: tuple[VarianceSplit | None, ...]


@dataclass(frozen=True)
class SuiteStatistics:
    """All tasks that every row has.

    Attributes:
        rows: Names.
        backbones: Of the rows.
        tasks: One by one.
        left_out: Tasks that some row lacks.
        mean_ranks: Of each row over the tasks [M].
        rank_low: 95 % interval over the test samples [M].
        rank_high: Its other end.
        critical_difference: Of two mean ranks, over the tasks (Nemenyi).
        ties: Groups of rows (indices) whose mean ranks differ by less.
        win_rates: Share of the tasks in which row i beats row j [M, M].
        win_low: 95 % interval over the test samples.
        win_high: Its other end.
        mean_scores: Mean over the tasks of the scores of each row [M].
        mean_low: 95 % interval over the test samples.
        mean_high: Its other end.
    """

    rows: tuple[str, ...]
    backbones: tuple[str, ...]
    tasks: tuple[TaskStatistics, ...]
    left_out: tuple[str, ...]
    mean_ranks: FloatArray
    rank_low: FloatArray
    rank_high: FloatArray
    critical_difference: float
    ties: tuple[tuple[int, ...], ...]
    win_rates: FloatArray
    win_low: FloatArray
    win_high: FloatArray
    mean_scores: FloatArray
    mean_low: FloatArray
    mean_high: FloatArray

    def as_json(self) -> dict[str, Any]:
        """Plain values; groups of ties by the names of the rows."""

        def named(groups: Sequence[Sequence[int]]) -> list[list[str]]:
            return [[self.rows[index] for index in group] for group in groups]

        return {
            "rows": [
                {"name": name, "mean_rank": rank, "low": low, "high": high}
                for name, rank, low, high in zip(
                    self.rows,
                    self.mean_ranks.tolist(),
                    self.rank_low.tolist(),
                    self.rank_high.tolist(),
                    strict=True,
                )
            ],
            "critical_difference": self.critical_difference,
            "ties": named(self.ties),
            "win_rates": self.win_rates.tolist(),
            "win_rates_low": self.win_low.tolist(),
            "win_rates_high": self.win_high.tolist(),
            "tasks": [
                {
                    "task": task.task,
                    "values": list(task.values),
                    "ranks": [[rank.low, rank.high] for rank in task.ranks],
                    "ties": named(task.ties),
                    "smallest_difference": task.smallest_difference,
                    "variance": [split.__dict__ if split else None for split in task.variance],
                }
                for task in self.tasks
            ],
            "left_out": list(self.left_out),
        }


def suite_statistics(
    records: Sequence[Record],
    store: RecordStore,
    *,
    names: Mapping[str, str] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
    progress: Progress = no_progress,
) -> SuiteStatistics:
    """Statistics of all rows that `records` are of.

    Args:
        records: Of two or more rows; failed ones do not count.
        store: Of their outcomes.
        names: Display names of backbones; their order is the order of the rows.
        num_resamples: Of the test samples.
        seed: Of the drawing.
        progress: Told of the tasks.

    Raises:
        DataError: There are not two rows with a task in common, or outcomes do not fit each other.
        ConfigError: A task was measured with different settings.
    """
    ok = [record for record in records if record.status == "ok"]
    recorded = dict.fromkeys(record.cell.backbone for record in ok)
    order = [name for name in names or {} if name in recorded]
    order += [name for name in recorded if name not in order]

    @functools.cache
    def outcomes_of(row: str, task: str) -> pd.DataFrame:
        return store.outcomes(by_cell[row, task])

    def outcomes(record: Record) -> pd.DataFrame:
        return outcomes_of(record.row_id, record.task)

    by_cell = {(record.row_id, record.task): record for record in ok}
    sides = []
    for backbone in order:
        of_row: dict[str, dict[int, Record]] = {}
        for record in ok:
            if record.cell.backbone == backbone:
                of_row.setdefault(record.task, {})[record.cell.seed] = record
        sides.append(Side((names or {}).get(backbone, backbone), of_row, outcomes))
    all_tasks = list(dict.fromkeys(record.task for record in ok))
    shared = [task for task in all_tasks if all(task in side.records for side in sides)]
    if len(sides) < 2 or not shared:
        raise DataError(
            f"{len(sides)} rows have {len(shared)} tasks in common; statistics of a suite need two "
            "rows and a task that both have. Choose other rows: maskclip-bench results ls"
        )
    tasks, resamples = [], []
    for index, task in enumerate(shared):
        found, drawn = _task_statistics(sides, task, num_resamples, seed + index)
        tasks.append(found)
        resamples.append(drawn)
        outcomes_of.cache_clear()
        progress("tasks", index + 1, len(shared))
    left_out = tuple(task for task in all_tasks if task not in shared)
    names_of_rows = tuple(side.name for side in sides)
    return _over_tasks(names_of_rows, tuple(order), tasks, resamples, left_out)


def _over_tasks(
    rows: tuple[str, ...],
    backbones: tuple[str, ...],
    tasks: Sequence[TaskStatistics],
    resamples: Sequence[FloatArray],
    left_out: tuple[str, ...],
) -> SuiteStatistics:
    drawn = np.stack(resamples, axis=-1)  # [R, M, C], higher is better
    measured = drawn[0]  # the first is the measurement itself
    ranks = mean_ranks(measured)
    rank_low, rank_high = percentiles(mean_ranks(drawn[1:]))
    win_low, win_high = percentiles(win_rates(drawn[1:]))
    smallest = critical_difference(len(rows), len(tasks))
    apart = np.asarray(ranks[:, None] + smallest < ranks[None, :])
    mean_low, mean_high = percentiles(np.abs(drawn[1:].mean(axis=-1)))
    return SuiteStatistics(
        rows,
        backbones,
        tuple(tasks),
        left_out,
        ranks,
        np.minimum(rank_low, ranks),
        np.maximum(rank_high, ranks),
        smallest,
        tuple(tie_groups((-ranks).tolist(), apart)),
        win_rates(measured),
        win_low,
        win_high,
        np.abs(measured.mean(axis=-1)),
        mean_low,
        mean_high,
    )


def _task_statistics(
    sides: Sequence[Side], task: str, num_resamples: int, seed: int
) -> tuple[TaskStatistics, FloatArray]:
    """Of one task, and its scores [1 + R, M]: as measured, then resampled; higher is better."""
    first = next(iter(sides[0].records[task].values()))
    metric = first.primary
    sign = 1.0 if metric.higher_is_better else -1.0
    values = np.array(
        [np.mean([r.primary.value for r in side.records[task].values()]) for side in sides]
    )
    better = _clearly_better(sides, task)
    smallest: float | None = None
    splits: list[VarianceSplit | None] = [None] * len(sides)
    drawn = np.repeat(sign * values[None], num_resamples, axis=0)
    if metric.statistic != "none":
        by_seed = [_influences(side, task) for side in sides]
        influence = aligned([sum(each[1:], each[0]) / len(each) for each in by_seed])
        drawn = sign * resampled(values, influence, num_resamples=num_resamples, seed=seed)
        pairs = list(itertools.combinations(range(len(sides)), 2))
        smallest = float(
            np.mean(
                [
                    smallest_difference_after(
                        influence[:, a], influence[:, b], num_comparisons=len(pairs)
                    )
                    for a, b in pairs
                ]
            )
        )
        splits = [_split(side, task, each) for side, each in zip(sides, by_seed, strict=True)]
    found = TaskStatistics(
        task,
        tuple(values.tolist()),
        tuple(rank_intervals(better)),
        tuple(tie_groups((sign * values).tolist(), better)),
        smallest,
        tuple(splits),
    )
    return found, np.concatenate([sign * values[None], drawn])


def _clearly_better(sides: Sequence[Side], task: str) -> Pairs:
    """[M, M] from paired tests of all pairs, corrected together (Holm)."""
    pairs = list(itertools.combinations(range(len(sides)), 2))
    tests = [_gain_and_p_value(sides, a, b, task) for a, b in pairs]
    tested = [index for index, (_, p_value) in enumerate(tests) if not np.isnan(p_value)]
    corrected = holm([tests[index][1] for index in tested])
    better = np.zeros((len(sides), len(sides)), dtype=np.bool_)
    for index, p_value in zip(tested, corrected, strict=True):
        if p_value <= SIGNIFICANCE:
            a, b = pairs[index]
            better[(a, b) if tests[index][0] > 0 else (b, a)] = True
    return better


def _gain_and_p_value(sides: Sequence[Side], a: int, b: int, task: str) -> tuple[float, float]:
    """How much better row a is than row b, and the p-value; over seeds all rows share a spread."""
    line = Comparisons.of(sides[a], sides[b], [task]).frame.iloc[0]
    gain, p_value = float(line["difference"] * line["direction"]), float(line["p_value"])
    if line["covers"] != "seeds":
        return gain, p_value
    seeds = sorted(set(sides[a].records[task]) & set(sides[b].records[task]))
    values = {
        index: [side.records[task][seed].primary.value for seed in seeds]
        for index, side in enumerate(sides)
        if set(seeds) <= set(side.records[task])
    }
    others = [each for index, each in values.items() if index not in (a, b)]
    return gain, compare_seeds(values[a], values[b], others=others).p_value


def _influences(side: Side, task: str) -> list[pd.Series]:
    """Of each seed's outcomes."""
    found = []
    for _, record in sorted(side.records[task].items()):
        metric = record.primary
        name = record.primary_metric or ""
        found.append(influence_of(side.outcomes(record), name, metric.statistic, metric.columns))
    return found


def _split(side: Side, task: str, influences: Sequence[pd.Series]) -> VarianceSplit:
    records = [record for _, record in sorted(side.records[task].items())]
    draws = [
        (record.details.get("by_draw") or {}).get(record.primary_metric or "", [])
        for record in records
    ]
    return variance_split(
        [record.primary.value for record in records],
        list(aligned(influences).T),
        draws=draws if all(draws) else (),
    )
