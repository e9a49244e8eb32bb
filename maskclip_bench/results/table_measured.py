"""The records that a table shows: what may stand together, values, spreads, tests."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from maskclip_bench.errors import ConfigError
from maskclip_bench.results.paired import Comparison, compare_seeds
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.sample_tests import compare_records
from maskclip_bench.results.table_model import (
    MISSING_CELL,
    ColumnDeclaration,
    RowDeclaration,
    TableCell,
    TableDeclaration,
)

MEASURE_AGAIN = (
    "Files were changed between the measurements: run the rows again, with all their seeds."
)

Covers = Literal["samples", "seeds"]
"""Which noise a test covers: that of the test set, or that of training."""


@dataclass(frozen=True)
class MeasuredCells:
    """The records a table shows: (backbone, task) -> seed -> record."""

    declaration: TableDeclaration
    store: RecordStore | None
    records: dict[tuple[str, str], dict[int, Record]]

    @classmethod
    def read(
        cls,
        declaration: TableDeclaration,
        store: RecordStore | None,
        given: Sequence[Record] | None = None,
    ) -> MeasuredCells:
        """The records of the declared rows and columns.

        Args:
            declaration: Of the table.
            store: Of the records and their outcomes; None = none.
            given: Take these records instead of all that the store has.
        """
        records: dict[tuple[str, str], dict[int, Record]] = {}
        tasks = {column.task for column in declaration.columns if column.task}
        wanted = {row.backbone: row.seeds for row in declaration.rows if row.backbone}
        if given is None:
            given = [] if store is None else store.all(backbones=list(wanted), tasks=tasks)
        for record in given:
            cell = record.cell
            if cell.backbone not in wanted or cell.task not in tasks:
                continue
            seeds = wanted[cell.backbone]
            if seeds is None or cell.seed in seeds:
                records.setdefault((cell.backbone, cell.task), {})[cell.seed] = record
        return cls(declaration, store, records)

    def check(self) -> None:
        """Refuse what must not stand together.

        Raises:
            ConfigError: Says which rows disagree on what.
        """
        for column in self.declaration.columns:
            if column.task is None:
                continue
            shown = self.ok(column)
            for record in shown:
                if record.cell.world != self.declaration.world:
                    raise ConfigError(
                        f"{record.row_id} x {record.task} was measured in the "
                        f"{record.cell.world!r} world and cannot enter a table of the "
                        f"{self.declaration.world!r} world. Remove the row from the table."
                    )
                limit = limits(record)
                if limit and self.declaration.world == "real" and not self.declaration.limited:
                    raise ConfigError(
                        f"{record.row_id} x {record.task} was measured under the budget {limit}; "
                        "a table of the real world shows full runs only. Delete its record and "
                        "measure it again without limits."
                    )
                if column.preset is not None and record.preset != column.preset:
                    raise ConfigError(
                        f"The column {column.one_line} shows preset {column.preset!r}, but "
                        f"{record.row_id} was measured under {record.preset!r}. Run it again "
                        "under that preset, or change the table."
                    )
            check_same("preset", column, {r.row_id: preset_of(r) for r in shown})
            check_same("task version", column, {r.row_id: r.cell.task_version for r in shown})
            check_same("budget", column, {r.row_id: limits(r) for r in shown})
            if column.metric is not None:
                better = {r.row_id: r.metrics[column.metric].higher_is_better for r in shown}
                words = {row: "higher" if up else "lower" for row, up in better.items()}
                check_same("direction that is better", column, words)
            self._check_data(column, shown)

    def _check_data(self, column: ColumnDeclaration, shown: list[Record]) -> None:
        """Refuse a column measured on two states of the data; of one seed, where each has its own.

        Raises:
            ConfigError: Says which rows disagree.
        """
        by_seed = self.declaration.data_by_seed
        for seed in sorted({record.cell.seed for record in shown}) if by_seed else [None]:
            data = {
                record.row_id: record.fingerprints["data"]
                for record in shown
                if "data" in record.fingerprints and seed in (None, record.cell.seed)
            }
            check_same("state of the data", column, data, remedy=MEASURE_AGAIN)

    def limits(self) -> str:
        """The limits of the shown cells in words, e.g. "num_samples 10"; empty for full runs."""
        found = {
            f"{key} {value}"
            for column in self.declaration.columns
            for record in self.ok(column)
            for key, value in limits(record).items()
        }
        return ", ".join(sorted(found))

    def ok(self, column: ColumnDeclaration) -> list[Record]:
        """All scores of a column."""
        return [
            record
            for (_, task), seeds in self.records.items()
            for record in seeds.values()
            if task == column.task and record.status == "ok" and column.metric in record.metrics
        ]

    def seeds(self, backbone: str, column: ColumnDeclaration) -> dict[int, Record]:
        """Scores of one cell by seed, sorted."""
        found = self.records.get((backbone, column.task or ""), {})
        return {
            seed: record
            for seed, record in sorted(found.items())
            if record.status == "ok" and column.metric in record.metrics
        }

    def is_comparable(self, backbone: str, other: str, column: ColumnDeclaration) -> bool:
        """Whether two rows were measured on the same data.

        Where each seed has data of its own, rows of other seeds are of other worlds.
        """
        if not self.declaration.data_by_seed:
            return True
        columns = [column] if column.average is None else self.members(column)
        return all(
            self.seeds(backbone, each).keys() == self.seeds(other, each).keys() for each in columns
        )

    def values_by_seed(self, backbone: str, column: ColumnDeclaration) -> dict[int, float]:
        """Values of one cell by seed, sorted."""
        assert column.metric is not None
        return {
            seed: record.metrics[column.metric].value
            for seed, record in self.seeds(backbone, column).items()
        }

    def cell(self, row: RowDeclaration, column: ColumnDeclaration) -> TableCell:
        """A measured cell: one seed with its interval, or the mean over seeds with their spread."""
        assert row.backbone is not None
        seeds = self.seeds(row.backbone, column)
        if not seeds or column.metric is None:
            found = self.records.get((row.backbone, column.task or ""), {}).values()
            errors = [record.error for record in found if record.error is not None]
            if errors:
                return TableCell("failed", error=f"{errors[0].type}: {errors[0].message}")
            return MISSING_CELL
        metrics = [record.metrics[column.metric] for record in seeds.values()]
        values = [metric.value for metric in metrics]
        return TableCell(
            "synthetic" if self.declaration.world == "demo" else "measured",
            value=statistics.fmean(values),
            half_width=metrics[0].half_width if len(values) == 1 else statistics.stdev(values),
            num_seeds=len(values),
            preset=next(iter(seeds.values())).preset,
            low=metrics[0].low if len(values) == 1 else None,
            high=metrics[0].high if len(values) == 1 else None,
        )

    def chance_cell(self, column: ColumnDeclaration) -> TableCell:
        """Score of guessing, as the records of the column tell it."""
        for record in self.ok(column):
            assert column.metric is not None
            level = record.metrics[column.metric].chance_level
            if level is not None:
                return TableCell("chance", value=level)
        return MISSING_CELL

    def members(self, average: ColumnDeclaration) -> list[ColumnDeclaration]:
        """The columns that an average column averages."""
        return [
            column
            for column in self.declaration.columns
            if column.average is None
            and (average.average == "all" or column.group == average.group)
        ]

    def higher_is_better(self, column: ColumnDeclaration) -> bool:
        """Direction of a column; published scores without records are taken as up.

        An average has the direction of its columns, which have one (else it is missing).
        """
        if column.average is not None:
            return all(self.higher_is_better(member) for member in self.members(column))
        for record in self.ok(column):
            assert column.metric is not None
            return record.metrics[column.metric].higher_is_better
        return True

    def comparison(
        self, backbone: str, baseline: str, column: ColumnDeclaration
    ) -> tuple[Comparison, Covers] | None:
        """The test of a difference, and which noise it covers; None where there is none.

        Over two or more shared training seeds the rows are paired by seed; with one seed each they
        are paired by sample, and the noise of training is not covered.
        """
        if column.metric is None or self.store is None:
            return None
        if not self.is_comparable(backbone, baseline, column):
            return None
        ours, theirs = self.seeds(backbone, column), self.seeds(baseline, column)
        if not ours or not theirs:
            return None
        shared = [seed for seed in ours if seed in theirs]
        if len(shared) >= 2 and len(ours) == len(theirs) == len(shared):
            others = [
                values
                for row in self.declaration.rows
                if row.backbone and row.backbone not in (backbone, baseline)
                if (values := self.values_by_seed(row.backbone, column)).keys() == ours.keys()
            ]
            return compare_seeds(
                list(self.values_by_seed(backbone, column).values()),
                list(self.values_by_seed(baseline, column).values()),
                others=[list(values.values()) for values in others],
            ), "seeds"
        if len(ours) > 1 or len(theirs) > 1:
            return None
        (record,), (other,) = ours.values(), theirs.values()
        comparison = compare_records(self.store, record, other, column.metric)
        return None if comparison is None else (comparison, "samples")


def check_same(
    what: str, column: ColumnDeclaration, values: Mapping[str, object], *, remedy: str = ""
) -> None:
    """Refuse values that differ between the rows of a column.

    Raises:
        ConfigError: Names the rows and their values.
    """
    distinct = {str(value) for value in values.values()}
    if len(distinct) > 1:
        listing = ", ".join(f"{row}: {value}" for row, value in sorted(values.items()))
        remedy = remedy or (
            f"Delete the records that differ and measure them again under the same {what}."
        )
        raise ConfigError(
            f"The column {column.one_line} would mix more than one {what} ({listing}). {remedy}"
        )


def preset_of(record: Record) -> str:
    """Name and version of the record's preset."""
    return f"{record.preset} v{record.preset_version}"


def limits(record: Record) -> dict[str, object]:
    """Limits of the run that were set."""
    return {key: value for key, value in record.budget.items() if value is not None}
