"""What the Python door returns: results, comparisons and tables that show themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip_bench.errors import ConfigError, DataError, MaskCLIPBenchError, unknown_name
from maskclip_bench.escaping import html, one_line
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from maskclip_bench.results.records import Record
    from maskclip_bench.results.table_model import Table
    from maskclip_bench.tasks.features import FeatureStore

TEXT_WIDTH = 110


class Results:
    """Measured cells in memory: `results["knn/cifar10"]` is a record.

    Attributes:
        records: Task -> record.
        failures: Task that was named -> why it has no record.
        left_out: Task that only a "*" named -> why it was left out.
    """

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.failures: dict[str, MaskCLIPBenchError] = {}
        self.left_out: dict[str, str] = {}
        self._outcomes: dict[str, pd.DataFrame] = {}

    @cached_property
    def features(self) -> FeatureStore:
        """Features of the images seen so far, kept in memory, so that no image is encoded twice."""
        from maskclip_bench.tasks.features import FeatureStore

        return FeatureStore()

    @classmethod
    def of_row(cls, row: str, workspace: Workspace) -> Results:
        """What is recorded of a row in a workspace.

        Raises:
            UnknownNameError: Nothing is recorded of it.
            DataError: A record is damaged.
        """
        from maskclip_bench.results.records import RecordStore

        store = RecordStore(workspace.records)
        everything = [record for record in store.all() if record.status == "ok"]
        results = cls()
        for record in everything:
            if record.row_id == row:
                results.add(record, store.outcomes(record))
        if not results.records:
            known = {record.row_id for record in everything}
            raise unknown_name(
                "recorded row", row, known, remedy=f"Records are read from {store.root}."
            )
        return results

    def add(self, record: Record, outcomes: pd.DataFrame) -> None:
        """Add a measured cell."""
        self.records[record.task] = record
        self._outcomes[record.task] = outcomes

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __getitem__(self, task: str) -> Record:
        """The record of a task.

        Raises:
            UnknownNameError: It was not asked for.
            MaskCLIPBenchError: It could not be measured; why.
        """
        if task in self.failures:
            raise self.failures[task]
        if task in self.left_out:
            raise DataError(f"{task} was left out: {self.left_out[task]}.")
        if task not in self.records:
            raise unknown_name("measured task", task, self.records, remedy="Measure it first.")
        return self.records[task]

    def value(self, task: str, metric: str | None = None) -> float:
        """A metric of a task as a fraction; its primary one by default.

        Raises:
            UnknownNameError: It was not measured.
        """
        record = self[task]
        name = metric or record.primary_metric or ""
        if name not in record.metrics:
            raise unknown_name("metric", name, record.metrics, remedy=f"Of the task {task}.")
        return record.metrics[name].value

    def outcomes(self, task: str) -> pd.DataFrame:
        """One row a sample: sample_id, group, one column a metric, label and prediction if any.

        Raises:
            UnknownNameError: The task was not measured.
        """
        self[task]
        return self._outcomes[task]

    def to_pandas(self) -> pd.DataFrame:
        """One row a metric: task, metric, value, low, high (95 %), chance_level, counts, preset."""
        import pandas as pd

        rows = [
            {
                "backbone": record.row_id,
                "task": task,
                "metric": name,
                "value": metric.value,
                "low": metric.low,
                "high": metric.high,
                "chance_level": metric.chance_level,
                "num_samples": metric.num_samples,
                "num_groups": metric.num_groups,
                "is_primary": name == record.primary_metric,
                "preset": record.preset,
                "limit": record.budget.get("limit"),
                "seconds": record.seconds,
            }
            for task, record in self.records.items()
            for name, metric in record.metrics.items()
        ]
        return pd.DataFrame(rows)

    def save(self, workspace: str | Path | None = None) -> Path:
        """Save the records, with outcomes, where the command line and tables find them.

        Args:
            workspace: Default as on the command line.

        Returns:
            The folder of the records.

        Raises:
            StorageError: The disk refused.
        """
        from maskclip_bench.results.records import RecordStore

        store = RecordStore(Workspace.open(workspace).records)
        for task, record in self.records.items():
            store.save(record, self._outcomes[task])
        return store.root

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        """(task, metric, score, interval, chance) of each primary metric, in percent."""
        rows = []
        for task, record in self.records.items():
            metric = record.primary
            spread = (
                ""
                if metric.low is None or metric.high is None
                else f"{100 * metric.low:.1f} to {100 * metric.high:.1f}"
            )
            chance = "" if metric.chance_level is None else f"{100 * metric.chance_level:.1f}"
            limited = " (limited)" if record.budget else ""
            score = f"{100 * metric.value:.1f}{limited}"
            rows.append((task, record.primary_metric or "", score, spread, chance))
        rows += [(task, "not measured", "", "", "") for task in self.failures]
        return rows

    def _title(self) -> str:
        return ", ".join(dict.fromkeys(record.row_id for record in self.records.values()))

    def __repr__(self) -> str:
        return _text_table(self._title(), RESULT_COLUMNS, self._rows())

    def _repr_html_(self) -> str:
        return _html_table(self._title(), RESULT_COLUMNS, self._rows())


RESULT_COLUMNS = ("task", "metric", "score, %", "95 % interval", "chance, %")


class Comparisons:
    """Differences of two rows, task by task, with a sentence.

    Attributes:
        first: Name of the row whose scores come first.
        second: Name of the row that is subtracted.
        frame: One row a task: task, metric, first, second, difference, low, high, p_value,
            corrected_p_value (Holm over the tasks), is_clear, num_samples, num_groups.
    """

    def __init__(self, first: str, second: str, frame: pd.DataFrame) -> None:
        self.first = first
        self.second = second
        self.frame = frame

    @classmethod
    def of(cls, first: Results, second: Results, patterns: Sequence[str]) -> Comparisons:
        """Compare what both measured.

        Raises:
            DataError: They share no task, or a task was measured on different samples.
            ConfigError: A task was measured with different settings.
        """
        import pandas as pd

        from maskclip_bench.results.paired import holm

        shared = [
            task
            for task in first
            if task in second.records and any(fnmatch(task, pattern) for pattern in patterns)
        ]
        if not shared:
            raise DataError(
                f"The two share no task that matches {', '.join(patterns)}: the first has "
                f"{', '.join(first) or 'none'}; the second has {', '.join(second) or 'none'}."
            )
        rows = [_compared(first, second, task) for task in shared]
        frame = pd.DataFrame(rows)
        frame["corrected_p_value"] = holm(frame["p_value"].tolist())
        frame["is_clear"] = frame["corrected_p_value"] < 0.05
        names = [dict.fromkeys(r.row_id for r in side.records.values()) for side in (first, second)]
        return cls(", ".join(names[0]), ", ".join(names[1]), frame)

    @property
    def sentence(self) -> str:
        """Who is clearly better where, and what the test does not cover."""
        clear = self.frame[self.frame["is_clear"]]
        ahead = clear[clear["difference"] * clear["direction"] > 0]["task"].tolist()
        behind = clear[clear["difference"] * clear["direction"] < 0]["task"].tolist()
        open_ = len(self.frame) - len(clear)
        parts = []
        if ahead:
            parts.append(f"{self.first} is better than {self.second} on {', '.join(ahead)}")
        if behind:
            parts.append(f"{self.first} is worse than {self.second} on {', '.join(behind)}")
        if open_:
            parts.append(f"{open_} of {len(self.frame)} tasks show no clear difference")
        return (
            "; ".join(parts) + ". Paired by sample, 95 %, corrected for the number of tasks (Holm)."
            " The noise of training with another seed is not in it."
        )

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        return [
            (
                row.task + (" *" if row.is_clear else ""),
                f"{100 * row.first:.1f}",
                f"{100 * row.second:.1f}",
                f"{100 * row.difference:+.1f}",
                "" if row.low is None else f"{100 * row.low:+.1f} to {100 * row.high:+.1f}",
            )
            for row in self.frame.itertuples()
        ]

    def __repr__(self) -> str:
        columns = ("task", self.first, self.second, "difference", "95 % interval")
        return f"{_text_table('', columns, self._rows())}\n{self.sentence}"

    def _repr_html_(self) -> str:
        columns = ("task", self.first, self.second, "difference", "95 % interval")
        return f"{_html_table('', columns, self._rows())}<p>{html(self.sentence)}</p>"


class TableView:
    """A declared table: text in a terminal, HTML in a notebook.

    Attributes:
        table: The table itself (`results.table_model.Table`).
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def to_markdown(self) -> str:
        """The table as Markdown."""
        from maskclip_bench.results.rendering import to_markdown

        return to_markdown(self.table)

    def to_csv(self) -> str:
        """One line a cell."""
        from maskclip_bench.results.rendering import to_csv

        return to_csv(self.table)

    def __repr__(self) -> str:
        from maskclip_bench.results.table_files import plain_text

        return plain_text(self.table, width=TEXT_WIDTH).rstrip()

    def _repr_html_(self) -> str:
        from maskclip_bench.results.table_html import STYLE, to_html

        return f"<style>{STYLE}</style>{to_html(self.table, page=False)}"


def _compared(first: Results, second: Results, task: str) -> dict[str, Any]:
    from maskclip_bench.results.paired import paired_test

    ours, theirs = first.records[task], second.records[task]
    name = ours.primary_metric or ""
    _check_comparable(ours, theirs, task)
    metric, other = ours.metrics[name], theirs.metrics[name]
    row: dict[str, Any] = {
        "task": task,
        "metric": name,
        "first": metric.value,
        "second": other.value,
        "difference": metric.value - other.value,
        "direction": 1 if metric.higher_is_better else -1,
        "low": None,
        "high": None,
        "p_value": 1.0,
        "num_samples": metric.num_samples,
        "num_groups": metric.num_groups,
    }
    if metric.statistic != "none":
        test = paired_test(
            first.outcomes(task),
            second.outcomes(task),
            name,
            statistic=metric.statistic,
            columns=metric.columns,
        )
        row |= {"low": test.low, "high": test.high, "p_value": test.p_value}
    return row


def _check_comparable(ours: Record, theirs: Record, task: str) -> None:
    for what, a, b in (
        (
            "presets",
            f"{ours.preset} v{ours.preset_version}",
            f"{theirs.preset} v{theirs.preset_version}",
        ),
        ("task versions", ours.cell.task_version, theirs.cell.task_version),
        ("primary metrics", ours.primary_metric, theirs.primary_metric),
        ("limits", dict(ours.budget), dict(theirs.budget)),
        ("data", ours.fingerprints.get("data"), theirs.fingerprints.get("data")),
    ):
        if a != b:
            raise ConfigError(
                f"{task}: the two were measured with different {what}, {a} and {b}. Measure both "
                "again with the same."
            )


def _text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    view = RichTable(title=Text(one_line(title)) if title else None, title_justify="left", box=None)
    for index, column in enumerate(columns):
        view.add_column(Text(one_line(column)), justify="left" if index < 1 else "right")
    for row in rows:
        view.add_row(*(Text(one_line(cell)) for cell in row))
    output = StringIO()
    Console(file=output, width=TEXT_WIDTH).print(view)
    return "\n".join(line.rstrip() for line in output.getvalue().rstrip().splitlines())


def _html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    caption = f"<caption>{html(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
