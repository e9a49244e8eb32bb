"""Two rows, task by task: who wins where, by how much, and on which samples they differ.

With two or more training seeds that both rows have, they are paired by seed; otherwise by sample.
The p-values are corrected over the tasks (Holm).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pandas as pd

from maskclip_bench.errors import ConfigError, DataError, unknown_name
from maskclip_bench.escaping import html
from maskclip_bench.results.outcome_columns import mean_ratio, ratio_column_names
from maskclip_bench.results.paired import compare_seeds, holm, paired_test
from maskclip_bench.results.record_model import MetricRecord, Record
from maskclip_bench.results.records import RecordStore
from maskclip_bench.results.table_model import SIGNIFICANCE
from maskclip_bench.results.text_view import html_table, text_table

NO_SEED_NOISE = "The noise of training with another seed is not in it."


@dataclass(frozen=True)
class Side:
    """One of two rows.

    Attributes:
        name: What sentences call it.
        records: Task -> training seed -> ok record.
        outcomes: The per-sample outcomes of one of these records.
    """

    name: str
    records: Mapping[str, Mapping[int, Record]]
    outcomes: Callable[[Record], pd.DataFrame]

    @classmethod
    def of_store(
        cls,
        store: RecordStore,
        row: str,
        *,
        records: Sequence[Record] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Side:
        """What is recorded of a row: a backbone with all its seeds, or "backbone__seed1".

        Args:
            store: Of the records.
            row: Its name.
            records: All of the store, where they were read already.
            names: Display names of backbones.

        Raises:
            UnknownNameError: Nothing is recorded of it.
        """
        everything = store.all() if records is None else records
        everything = [record for record in everything if record.status == "ok"]
        found = [record for record in everything if record.cell.backbone == row]
        found = found or [record for record in everything if record.row_id == row]
        if not found:
            known = {record.cell.backbone for record in everything}
            remedy = f"Records are read from {store.root}."
            raise unknown_name("recorded row", row, known, remedy=remedy)
        by_task: dict[str, dict[int, Record]] = {}
        for record in found:
            by_task.setdefault(record.task, {})[record.cell.seed] = record
        cell = found[0].cell
        name = (names or {}).get(cell.backbone, cell.backbone)
        return cls(
            name if row == cell.backbone else f"{name} (seed {cell.seed})", by_task, store.outcomes
        )


class Comparisons:
    """Differences of two rows, task by task, with a sentence.

    Attributes:
        first: Name of the row whose scores come first.
        second: Name of the row that is subtracted.
        frame: One line a task: task, metric, first, second, difference, direction (1 where higher
            is better, else -1), low, high, p_value, corrected_p_value (Holm over the tasks with a
            test), is_clear, covers ("seeds", "samples" or "" without a test), num_seeds,
            num_samples, num_groups. Fractions; NaN where there is no test.
    """

    def __init__(self, first: Side, second: Side, tasks: Sequence[str]) -> None:
        self.first = first.name
        self.second = second.name
        self._sides = (first, second)
        frame = pd.DataFrame([_compared(first, second, task) for task in tasks])
        tested = frame["p_value"].notna()
        corrected = np.full(len(frame), np.nan)
        corrected[tested.to_numpy()] = holm(frame.loc[tested, "p_value"].tolist())
        frame["corrected_p_value"] = corrected
        frame["is_clear"] = frame["corrected_p_value"] <= SIGNIFICANCE
        self.frame = frame

    @classmethod
    def of(cls, first: Side, second: Side, patterns: Sequence[str] = ("*",)) -> Comparisons:
        """Compare what both measured.

        Args:
            first: One row.
            second: The row that is subtracted.
            patterns: Only tasks that fit one of these shell patterns.

        Raises:
            DataError: They share no task, or a task was measured on different samples.
            ConfigError: A task was measured with different settings, or with other seeds.
        """
        shared = [
            task
            for task in first.records
            if task in second.records and any(fnmatch(task, pattern) for pattern in patterns)
        ]
        if not shared:
            raise DataError(
                f"The two share no task that matches {', '.join(patterns)}: the first has "
                f"{', '.join(first.records) or 'none'}; the second has "
                f"{', '.join(second.records) or 'none'}."
            )
        return cls(first, second, shared)

    @property
    def sentence(self) -> str:
        """Who is clearly better where, and what the tests cover."""
        gains = self.frame["difference"] * self.frame["direction"]
        clear = self.frame["is_clear"]
        ahead = self.frame.loc[clear & (gains > 0), "task"].tolist()
        behind = self.frame.loc[clear & (gains < 0), "task"].tolist()
        tested = self.frame["p_value"].notna()
        open_ = int((tested & ~clear).sum())
        untested = int((~tested).sum())
        parts = []
        if ahead:
            parts.append(f"{self.first} is better than {self.second} on {', '.join(ahead)}")
        if behind:
            parts.append(f"{self.first} is worse than {self.second} on {', '.join(behind)}")
        if open_:
            parts.append(f"{open_} of {len(self.frame)} tasks show no clear difference")
        if untested:
            parts.append(f"{untested} of {len(self.frame)} tasks have no test")
        return f"{'; '.join(parts)}.{self._covered()}"

    def _covered(self) -> str:
        covers = set(self.frame["covers"]) - {""}
        if not covers:
            return ""
        how = " or ".join(f"by {kind[:-1]}" for kind in ("seeds", "samples") if kind in covers)
        number = int(self.frame["p_value"].notna().sum())
        corrected = f", corrected for the number of tasks ({number}, Holm)" if number > 1 else ""
        noise = f" {NO_SEED_NOISE}" if "samples" in covers else ""
        return f" Paired {how}, 95 %{corrected}.{noise}"

    def differing(self, task: str) -> pd.DataFrame:
        """The samples on which the rows differ in a task's primary metric.

        Returns:
            One line a sample: sample_id, first, second, difference; the largest differences first,
            those in favour of the first row before those against it. Over several seeds, means.
            Empty where a metric does not follow from samples.

        Raises:
            UnknownNameError: The task was not compared.
        """
        if task not in set(self.frame["task"]):
            raise unknown_name("compared task", task, self.frame["task"], remedy="See `frame`.")
        pairs = _pairs(*self._sides, task)
        metric = pairs[0][0].primary_metric or ""
        values = [
            _by_sample(
                [side.outcomes(pair[index]) for pair in pairs], pairs[0][0].metrics[metric], metric
            )
            for index, side in enumerate(self._sides)
        ]
        if any(each is None for each in values):
            return pd.DataFrame(columns=["sample_id", "first", "second", "difference"])
        table = pd.DataFrame({"first": values[0], "second": values[1]}).dropna()
        table["difference"] = table["first"] - table["second"]
        table = table[table["difference"].abs() > 1e-12]
        order = np.lexsort((table["difference"] < 0, -table["difference"].abs()))
        return table.iloc[order].rename_axis("sample_id").reset_index()

    def lines(self) -> list[tuple[str, ...]]:
        """(task, score of the first, of the second, difference, interval, corrected p), as text."""
        return [
            (
                line.task + (" *" if line.is_clear else ""),
                f"{100 * line.first:.1f}",
                f"{100 * line.second:.1f}",
                f"{100 * line.difference:+.1f}",
                f"{100 * line.low:+.1f} to {100 * line.high:+.1f}" if line.covers else "no test",
                f"{line.corrected_p_value:.3g}" if line.covers else "",
            )
            for line in self.frame.itertuples()
        ]

    @property
    def columns(self) -> tuple[str, ...]:
        """Headers of `lines`."""
        return ("task", self.first, self.second, "difference", "95 % interval", "p (Holm)")

    def __repr__(self) -> str:
        return f"{text_table('', self.columns, self.lines())}\n{self.sentence}"

    def _repr_html_(self) -> str:
        return f"{html_table('', self.columns, self.lines())}<p>{html(self.sentence)}</p>"

    def as_json(self, *, num_samples: int | None = None) -> dict[str, Any]:
        """Plain values: first, second, sentence, and one entry a task with the samples that differ.

        Args:
            num_samples: At most that many sample ids in each direction; None = all.
        """
        lines = self.frame.astype(object).where(self.frame.notna(), None)
        tasks = []
        for line in lines.to_dict(orient="records"):
            table = self.differing(line["task"])
            sides = {
                "better": table[table["difference"] * line["direction"] > 0],
                "worse": table[table["difference"] * line["direction"] < 0],
            }
            samples = {
                name: {"number": len(side), "ids": side["sample_id"].tolist()[:num_samples]}
                for name, side in sides.items()
            }
            tasks.append({**line, "samples": samples})
        return {
            "first": self.first,
            "second": self.second,
            "sentence": self.sentence,
            "tasks": tasks,
        }


def _compared(first: Side, second: Side, task: str) -> dict[str, Any]:
    pairs = _pairs(first, second, task)
    name = pairs[0][0].primary_metric or ""
    metric = pairs[0][0].metrics[name]
    values = [[pair[index].metrics[name].value for pair in pairs] for index in (0, 1)]
    means = [float(np.mean(each)) for each in values]
    row: dict[str, Any] = {
        "task": task,
        "metric": name,
        "first": means[0],
        "second": means[1],
        "difference": means[0] - means[1],
        "direction": 1 if metric.higher_is_better else -1,
        "low": np.nan,
        "high": np.nan,
        "p_value": np.nan,
        "covers": "",
        "num_seeds": len(pairs),
        "num_samples": metric.num_samples,
        "num_groups": metric.num_groups,
    }
    if len(pairs) > 1:
        test = compare_seeds(*values)
        return row | {
            "low": test.low,
            "high": test.high,
            "p_value": test.p_value,
            "covers": "seeds",
        }
    if metric.statistic == "none" or pairs[0][1].metrics[name].statistic != metric.statistic:
        return row
    test = paired_test(
        first.outcomes(pairs[0][0]),
        second.outcomes(pairs[0][1]),
        name,
        statistic=metric.statistic,
        columns=metric.columns,
    )
    return row | {"low": test.low, "high": test.high, "p_value": test.p_value, "covers": "samples"}


def _pairs(first: Side, second: Side, task: str) -> list[tuple[Record, Record]]:
    """Records to compare: those of each shared seed, or the only one of either side.

    Raises:
        ConfigError: They were measured with different settings, or have no seed in common.
    """
    ours, theirs = first.records[task], second.records[task]
    shared = [seed for seed in sorted(ours) if seed in theirs]
    if shared:
        pairs = [(ours[seed], theirs[seed]) for seed in shared]
    elif len(ours) == len(theirs) == 1:
        pairs = [(next(iter(ours.values())), next(iter(theirs.values())))]
    else:
        raise ConfigError(
            f"{task}: {first.name} has the training seeds {sorted(ours)} and {second.name} "
            f"{sorted(theirs)}, none in common. Name one seed of each, e.g. NAME__seed1."
        )
    for pair in pairs:
        _check_comparable(*pair, task)
    return pairs


def _check_comparable(ours: Record, theirs: Record, task: str) -> None:
    for what, a, b in (
        (
            "presets",
            f"{ours.preset} v{ours.preset_version}",
            f"{theirs.preset} v{theirs.preset_version}",
        ),
        ("task versions", ours.cell.task_version, theirs.cell.task_version),
        ("primary metrics", ours.primary_metric, theirs.primary_metric),
        ("directions of the metric", *(_direction(record) for record in (ours, theirs))),
        ("limits", dict(ours.budget), dict(theirs.budget)),
        ("data", ours.fingerprints.get("data"), theirs.fingerprints.get("data")),
    ):
        if a != b:
            raise ConfigError(
                f"{task}: the two were measured with different {what}, {a} and {b}. Measure both "
                "again with the same."
            )


def _direction(record: Record) -> str:
    return "higher is better" if record.primary.higher_is_better else "lower is better"


def _by_sample(tables: Sequence[pd.DataFrame], metric: MetricRecord, name: str) -> pd.Series | None:
    """One value a sample, the mean over the tables of several seeds; None where there is none."""
    columns = [_sample_values(table, metric, name) for table in tables]
    if any(column is None for column in columns):
        return None
    return pd.concat(columns, axis=1).mean(axis=1)


def _sample_values(table: pd.DataFrame, metric: MetricRecord, name: str) -> pd.Series | None:
    ids = table["sample_id"].to_numpy()
    if metric.statistic in ("mean", "mean_per_class", "roc_auc"):
        return pd.Series(table[name].to_numpy(dtype=np.float64), index=ids)
    if metric.statistic == "mean_of_columns":
        values = table[metric.columns].astype(np.float64).mean(axis=1)
        return pd.Series(values.to_numpy(), index=ids)
    if metric.statistic != "mean_ratio":
        return None
    top, bottom = ratio_column_names(name)
    values = [
        float(mean_ratio(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)))
        if a is not None and np.sum(b) > 0
        else np.nan
        for a, b in zip(table[top], table[bottom], strict=True)
    ]
    return pd.Series(values, index=ids)
