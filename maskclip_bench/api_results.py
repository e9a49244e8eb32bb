"""What the Python door returns: results and tables that show themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from maskclip_bench.errors import ConfigError, DataError, MaskCLIPBenchError, unknown_name
from maskclip_bench.results.text_view import TEXT_WIDTH, html_table, text_table
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from maskclip_bench.results.comparing import Side
    from maskclip_bench.results.records import Record
    from maskclip_bench.results.table_model import Table
    from maskclip_bench.tasks.features import FeatureStore


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

    def side(self) -> Side:
        """These results as one of two rows that are compared."""
        from maskclip_bench.results.comparing import Side

        return Side(
            self._title(),
            {task: {record.cell.seed: record} for task, record in self.records.items()},
            lambda record: self._outcomes[record.task],
        )

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
        return text_table(self._title(), RESULT_COLUMNS, self._rows())

    def _repr_html_(self) -> str:
        return html_table(self._title(), RESULT_COLUMNS, self._rows())


RESULT_COLUMNS = ("task", "metric", "score, %", "95 % interval", "chance, %")


class TableView:
    """A table: text in a terminal, HTML in a notebook.

    Attributes:
        table: The table itself (`results.table_model.Table`).
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    @classmethod
    def of(
        cls,
        name: str | None,
        *,
        backbones: Sequence[str],
        tasks: Sequence[str],
        baseline: str | None,
        workspace: Workspace,
        reference: bool,
        chance: bool | None,
    ) -> TableView:
        """The table that `api.table` asks for.

        Raises:
            UnknownNameError: There is no such table, row or task.
            ConfigError: Its cells do not belong together, or they are of both worlds.
        """
        from maskclip_bench.results.records import RecordStore
        from maskclip_bench.results.reference import load_references
        from maskclip_bench.results.table_requests import declared_table, tables_of

        store = RecordStore(workspace.records)
        if name is None:
            built = tables_of(
                store, backbones, tasks, chance=chance is not False, baseline=baseline
            )
            if len(built) != 1:
                raise ConfigError(
                    "These cells are of the real and of the demo world, which no table mixes. "
                    "Name rows or tasks of one world."
                )
            return cls(built[0])
        if backbones or tasks:
            raise ConfigError(
                "A declared table has its own rows and columns: give its name, or backbones and "
                "tasks."
            )
        references = load_references() if reference else ()
        return cls(
            declared_table(
                name, store, references=references, chance=bool(chance), baseline=baseline
            )
        )

    def to_markdown(self) -> str:
        """The table as Markdown."""
        return self._as("markdown")

    def to_latex(self) -> str:
        """The table as LaTeX, with booktabs."""
        return self._as("latex")

    def to_html(self) -> str:
        """The table as a page of its own."""
        return self._as("html")

    def to_csv(self) -> str:
        """One line a cell."""
        return self._as("csv")

    def to_json(self) -> str:
        """The whole table; numbers are fractions."""
        return self._as("json")

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write the table into a file; its suffix says the format, if none is given.

        Raises:
            ConfigError: There is no such format, or no format of that suffix.
            StorageError: The disk refused.
        """
        from maskclip_bench.results.table_files import SUFFIXES, format_of, write_as

        path = Path(path)
        kind = format_of(path, format)
        if kind is None:
            raise ConfigError(
                f"{path.name!r} has no suffix that names a format. Use one of "
                f"{', '.join(SUFFIXES)}, or give a format."
            )
        write_as(self.table, path, kind)
        return path

    def _as(self, kind: str) -> str:
        from maskclip_bench.results.table_files import TEXT_FORMATS

        return TEXT_FORMATS[kind](self.table)

    def __repr__(self) -> str:
        from maskclip_bench.results.table_files import plain_text

        return plain_text(self.table, width=TEXT_WIDTH).rstrip()

    def _repr_html_(self) -> str:
        from maskclip_bench.results.table_html import STYLE, to_html

        return f"<style>{STYLE}</style>{to_html(self.table, page=False)}"
