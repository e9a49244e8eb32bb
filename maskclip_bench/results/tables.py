"""Build a table from records and published numbers; a table never flatters.

One preset, one budget and one world a column; an average with a missing cell is missing; each
cell knows whether it was measured here, measured on the demo world, or published elsewhere.

    maskclip-bench table demo
    maskclip-bench table imagenet --reference paper
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from maskclip_bench import data_files
from maskclip_bench.config import World, load_declaration
from maskclip_bench.errors import ConfigError
from maskclip_bench.results import bootstrap
from maskclip_bench.results.picture import to_png
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.reference import (
    UNKNOWN_PRESET,
    ReferenceRow,
    check_selector,
    select,
)
from maskclip_bench.results.rendering import to_csv, to_markdown, to_terminal, write_table
from maskclip_bench.results.table_model import (
    ColumnDeclaration,
    RowDeclaration,
    Table,
    TableCell,
    TableDeclaration,
    TableRow,
)

__all__ = [
    "ColumnDeclaration",
    "RowDeclaration",
    "Table",
    "TableCell",
    "TableDeclaration",
    "TableRow",
    "build_table",
    "load_table",
    "table_names",
    "table_of_records",
    "to_csv",
    "to_markdown",
    "to_png",
    "to_terminal",
    "write_table",
]

KIND = "configs/tables"

MISSING = TableCell("missing")

PROTOCOL_TITLES = {
    "zero_shot_classification": "Zero-shot",
    "linear_probe": "Linear probe",
    "knn": "kNN",
    "few_shot": "Few-shot",
    "finetune": "Finetune",
    "retrieval": "Retrieval",
    "segmentation": "Segmentation",
    "linear_segmentation": "Segmentation, frozen linear",
    "knn_segmentation": "Segmentation, frozen kNN",
    "zero_shot_segmentation": "Segmentation, zero-shot",
    "detection": "Detection",
}
"""Group headers of tables that nobody declared, and the order of their columns."""

METRIC_TITLES = {
    "top1_accuracy": "top-1",
    "top5_accuracy": "top-5",
    "mean_per_class_accuracy": "mean per class",
    "image_to_text_recall@1": "I→T R@1",
    "text_to_image_recall@1": "T→I R@1",
    "mean_iou": "mIoU",
    "box_ap": "APᵇ",
    "mask_ap": "APᵐ",
}


def table_names() -> list[str]:
    """Names of the declared tables."""
    return list(data_files.declarations(KIND))


def load_table(name: str) -> TableDeclaration:
    """Read `configs/tables/<name>.yaml`, or a YAML file by its path.

    Raises:
        UnknownNameError: There is no such table.
        ConfigError: The file does not fit.
    """
    path = data_files.find_declaration(
        KIND, name, singular="table", listing="maskclip-bench list tables"
    )
    return load_declaration(path, TableDeclaration)


def table_of_records(
    records: Sequence[Record],
    *,
    title: str,
    world: World,
    names: Mapping[str, str] | None = None,
    baseline: str | None = None,
) -> TableDeclaration:
    """Declare a table for whatever was recorded, for suites that have no table of their own.

    Args:
        records: Rows and columns are taken from the ok ones of `world`.
        title: Heading.
        world: Of the table.
        names: Display names of backbones; their order is the order of the rows.
        baseline: Backbone to compare with; left out if it has no record.

    Raises:
        ConfigError: There is no ok record of this world.
    """
    shown = [r for r in records if r.status == "ok" and r.cell.world == world]
    if not shown:
        raise ConfigError(
            f"There is no record of the {world} world yet. Make some: maskclip-bench run"
        )
    names = names or {}
    recorded = {record.cell.backbone for record in shown}
    backbones = [name for name in names if name in recorded]
    backbones += sorted(recorded.difference(backbones))
    order = list(PROTOCOL_TITLES)
    columns: dict[tuple[str, str], ColumnDeclaration] = {}
    for record in sorted(shown, key=lambda r: (_position(order, r.cell.protocol), r.task)):
        for metric in _column_metrics(record):
            columns[record.task, metric] = ColumnDeclaration(
                group=PROTOCOL_TITLES.get(record.cell.protocol, record.cell.protocol),
                title=f"{record.cell.dataset}\n{METRIC_TITLES.get(metric, metric)}",
                task=record.task,
                metric=metric,
            )
    return TableDeclaration(
        title=title,
        world=world,
        columns=list(columns.values()),
        rows=[RowDeclaration(name=names.get(name, name), backbone=name) for name in backbones],
        baseline=baseline if baseline in backbones else None,
    )


def build_table(
    declaration: TableDeclaration,
    store: RecordStore | None = None,
    *,
    references: Sequence[ReferenceRow] = (),
    chance: bool = False,
    compare: bool = True,
) -> Table:
    """Fill a declared table.

    Args:
        declaration: From `load_table` or `table_of_records`.
        store: Records of a workspace; None leaves the measured rows out.
        references: Published numbers (`reference.load_references`); none leaves their rows out.
        chance: Add a row with the score of guessing.
        compare: Test the differences to the baseline on the stored outcomes.

    Raises:
        ConfigError: Two presets, task versions, budgets or worlds would meet in one column.
        UnknownNameError: A row selects a published number that does not exist.
        DataError: A record is damaged.
    """
    references = list(references)
    if references:
        for row in declaration.rows:
            for selector in row.published:
                check_selector(selector, references)
    measured = _Measured.read(declaration, store)
    measured.check()
    rows = []
    for row in declaration.rows:
        if row.backbone is not None:
            cells = [measured.cell(row, column) for column in declaration.columns]
        elif references:
            cells = [_published_cell(row, column, references) for column in declaration.columns]
        else:
            continue
        averaged = _with_averages(cells, declaration.columns)
        rows.append(TableRow(row.name, row.group, averaged, row.backbone))
    _check_published_presets(declaration, rows)
    rows = _with_deltas(rows, declaration, measured, compare=compare)
    rows = _with_best(rows, declaration, measured)
    above = []
    if chance:
        cells = [measured.chance_cell(column) for column in declaration.columns]
        above.append(TableRow("chance", "", _with_averages(cells, declaration.columns)))
    return _finished(declaration, above, rows, compare=compare)


@dataclass(frozen=True)
class _Measured:
    """The records a table shows: (backbone, task) -> seed -> record."""

    declaration: TableDeclaration
    store: RecordStore | None
    records: dict[tuple[str, str], dict[int, Record]]

    @classmethod
    def read(cls, declaration: TableDeclaration, store: RecordStore | None) -> _Measured:
        records: dict[tuple[str, str], dict[int, Record]] = {}
        if store is not None:
            tasks = {column.task for column in declaration.columns if column.task}
            wanted = {row.backbone: row.seeds for row in declaration.rows if row.backbone}
            for record in store.all():
                cell = record.cell
                if cell.backbone in wanted and cell.task in tasks:
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
                budget = _spent(record)
                if budget and self.declaration.world == "real":
                    raise ConfigError(
                        f"{record.row_id} x {record.task} was measured under the budget {budget}; "
                        "a table of the real world shows full runs only. Delete its record and "
                        "measure it again without limits."
                    )
                if column.preset is not None and record.preset != column.preset:
                    raise ConfigError(
                        f"The column {_name(column)} shows preset {column.preset!r}, but "
                        f"{record.row_id} was measured under {record.preset!r}. Run it again "
                        "under that preset, or change the table."
                    )
            _check_same("preset", column, {r.row_id: _preset(r) for r in shown})
            _check_same("task version", column, {r.row_id: r.cell.task_version for r in shown})
            _check_same("budget", column, {r.row_id: _spent(r) for r in shown})

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

    def cell(self, row: RowDeclaration, column: ColumnDeclaration) -> TableCell:
        """A measured cell: one seed with its interval, or the mean over seeds with their spread."""
        assert row.backbone is not None
        seeds = self.seeds(row.backbone, column)
        if not seeds or column.metric is None:
            found = self.records.get((row.backbone, column.task or ""), {}).values()
            errors = [record.error for record in found if record.error is not None]
            if errors:
                return TableCell("failed", error=f"{errors[0].type}: {errors[0].message}")
            return MISSING
        metrics = [record.metrics[column.metric] for record in seeds.values()]
        values = [metric.value for metric in metrics]
        return TableCell(
            "synthetic" if self.declaration.world == "demo" else "measured",
            value=statistics.fmean(values),
            half_width=metrics[0].half_width if len(values) == 1 else statistics.stdev(values),
            num_seeds=len(values),
            preset=next(iter(seeds.values())).preset,
        )

    def chance_cell(self, column: ColumnDeclaration) -> TableCell:
        """Score of guessing, as the records of the column tell it."""
        for record in self.ok(column):
            assert column.metric is not None
            level = record.metrics[column.metric].chance_level
            if level is not None:
                return TableCell("chance", value=level)
        return MISSING

    def higher_is_better(self, column: ColumnDeclaration) -> bool:
        """Direction of the column's metric; published scores without records are taken as up."""
        for record in self.ok(column):
            assert column.metric is not None
            return record.metrics[column.metric].higher_is_better
        return True

    def difference(
        self, backbone: str, baseline: str, column: ColumnDeclaration
    ) -> tuple[float, float] | None:
        """Interval of the difference to the baseline: over shared seeds, else over samples."""
        if column.metric is None or self.store is None:
            return None
        ours, theirs = self.seeds(backbone, column), self.seeds(baseline, column)
        if not ours or not theirs:
            return None
        shared = [seed for seed in ours if seed in theirs]
        if len(shared) >= 2 and len(ours) == len(theirs) == len(shared):
            comparison = bootstrap.compare_seeds(
                [ours[seed].metrics[column.metric].value for seed in shared],
                [theirs[seed].metrics[column.metric].value for seed in shared],
            )
            return comparison.low, comparison.high
        if len(ours) > 1 or len(theirs) > 1:
            return None
        (record,), (other,) = ours.values(), theirs.values()
        metric = record.metrics[column.metric]
        if metric.statistic == "none" or not (record.outcomes_file and other.outcomes_file):
            return None
        comparison = bootstrap.paired_test(
            self.store.outcomes(record),
            self.store.outcomes(other),
            column.metric,
            statistic=metric.statistic,
        )
        return comparison.low, comparison.high


def _published_cell(
    row: RowDeclaration, column: ColumnDeclaration, references: Sequence[ReferenceRow]
) -> TableCell:
    if column.task is None or column.metric is None:
        return MISSING
    for selector in row.published:
        found = select(
            references, selector, task=column.task, metric=column.metric, preset=column.preset
        )
        if found is not None:
            return TableCell(
                "published",
                value=found.fraction,
                sources=(_source(found),),
                preset=None if found.preset == UNKNOWN_PRESET else found.preset,
            )
    return MISSING


def _source(row: ReferenceRow) -> str:
    return f"{row.table}: {row.source}"


def _check_published_presets(declaration: TableDeclaration, rows: Sequence[TableRow]) -> None:
    """Hold measured and published cells of a column to one preset, where it is known.

    Raises:
        ConfigError: Two presets would meet.
    """
    for index, column in enumerate(declaration.columns):
        if column.average is not None:
            continue
        presets = {
            f"{row.name} ({row.cells[index].origin})": row.cells[index].preset for row in rows
        }
        _check_same(
            "preset",
            column,
            {name: preset for name, preset in presets.items() if preset is not None},
            remedy="Show the table without published numbers, or measure under their",
        )


def _with_averages(
    cells: Sequence[TableCell], columns: Sequence[ColumnDeclaration]
) -> tuple[TableCell, ...]:
    """Fill the average columns of a row; one missing member makes the average missing."""
    filled = list(cells)
    for index, column in enumerate(columns):
        if column.average is None:
            continue
        members = [
            cell
            for cell, other in zip(cells, columns, strict=True)
            if other.average is None and (column.average == "all" or other.group == column.group)
        ]
        values = [cell.value for cell in members if cell.value is not None]
        if members and len(values) == len(members):
            filled[index] = TableCell(
                members[0].origin,
                value=statistics.fmean(values),
                num_seeds=min(cell.num_seeds for cell in members),
                sources=tuple(dict.fromkeys(source for cell in members for source in cell.sources)),
                preset=members[0].preset,
            )
    return tuple(filled)


def _with_deltas(
    rows: list[TableRow], declaration: TableDeclaration, measured: _Measured, *, compare: bool
) -> list[TableRow]:
    """Add the differences to the baseline row to every other measured row."""
    baseline = declaration.baseline
    base = next((row for row in rows if baseline and row.backbone == baseline), None)
    if base is None or baseline is None:
        return rows
    result = []
    for row in rows:
        if row is base or row.backbone is None:
            result.append(row)
            continue
        cells = []
        for cell, base_cell, column in zip(row.cells, base.cells, declaration.columns, strict=True):
            if cell.value is not None and base_cell.value is not None:
                cell = replace(
                    cell,
                    delta=cell.value - base_cell.value,
                    delta_interval=(
                        measured.difference(row.backbone, baseline, column) if compare else None
                    ),
                )
            cells.append(cell)
        result.append(replace(row, cells=tuple(cells)))
    return result


def _with_best(
    rows: list[TableRow], declaration: TableDeclaration, measured: _Measured
) -> list[TableRow]:
    """Mark the best of each column: of all measured rows, and of each group of published rows.

    Groups of published rows differ in their training budget; measured rows are compared across
    groups, so that a longer trained baseline shows. Cells that read the same share the mark: a
    digit that is not shown decides nothing.
    """
    cells = [list(row.cells) for row in rows]
    rivals = [row.backbone is not None or row.group for row in rows]
    for index, column in enumerate(declaration.columns):
        sign = 1 if measured.higher_is_better(column) else -1
        for rival in dict.fromkeys(rivals):
            numbers = {}
            for position, row in enumerate(cells):
                value = row[index].value
                if rivals[position] == rival and value is not None:
                    numbers[position] = sign * round(100 * value, column.decimals)
            if len(numbers) < 2:
                continue
            best = max(numbers.values())
            for position, number in numbers.items():
                if number == best:
                    cells[position][index] = replace(cells[position][index], best=True)
    return [replace(row, cells=tuple(new)) for row, new in zip(rows, cells, strict=True)]


def _finished(
    declaration: TableDeclaration, above: list[TableRow], rows: list[TableRow], *, compare: bool
) -> Table:
    """Leave out empty rows and columns, and write the notes; `above` are rows without notes."""
    kept = [
        index
        for index in range(len(declaration.columns))
        if any(row.cells[index].origin != "missing" for row in rows)
    ]
    dropped = [column for i, column in enumerate(declaration.columns) if i not in kept]
    present = [row for row in rows if any(cell.origin != "missing" for cell in row.cells)]
    notes = _notes(
        declaration,
        present,
        absent_rows=[row.name for row in rows if row not in present],
        absent_columns=[_name(column) for column in dropped],
        compare=compare,
    )
    return Table(
        title=declaration.title,
        caption=declaration.caption,
        world=declaration.world,
        columns=tuple(declaration.columns[index] for index in kept),
        rows=tuple(
            replace(row, cells=tuple(row.cells[index] for index in kept))
            for row in (*(above if present else ()), *present)
        ),
        notes=tuple(notes),
    )


def _notes(
    declaration: TableDeclaration,
    rows: Sequence[TableRow],
    *,
    absent_rows: Sequence[str],
    absent_columns: Sequence[str],
    compare: bool,
) -> list[str]:
    cells = [(row, cell) for row in rows for cell in row.cells]
    notes = []
    one_seed = any(cell.half_width is not None and cell.num_seeds == 1 for _, cell in cells)
    counts = sorted({cell.num_seeds for _, cell in cells if cell.num_seeds > 1})
    if counts:
        seeds = " or ".join(str(count) for count in counts)
        notes.append(f"Mean ± standard deviation over {seeds} training seeds.")
    if one_seed:
        where = "Cells with one seed: ±" if counts else "±:"
        notes.append(
            f"{where} half-width of the 95 % bootstrap interval, resampled by drawing or image."
        )
    if any(cell.delta is not None for _, cell in cells):
        name = next(r.name for r in declaration.rows if r.backbone == declaration.baseline)
        note = f"Signed: difference to {name}, in points"
        if compare:
            by_seed = " (over seeds: paired by seed)" if counts else ""
            note += f"; * its 95 % interval, paired by sample{by_seed}, excludes 0"
        notes.append(note + ".")
    if declaration.world == "demo":
        notes.append("Demo world: drawn scenes; not comparable with published numbers.")
    notes += _published_notes(declaration, rows)
    for row, cell in cells:
        if cell.origin == "failed":
            first = cell.error.splitlines()[0][:160]
            notes.append(f"Failed, so without a score: {row.name} ({first}).")
    if absent_columns:
        notes.append("Not measured in any row: " + ", ".join(absent_columns) + ".")
    if absent_rows:
        notes.append("Without any number here: " + ", ".join(absent_rows) + ".")
    return list(dict.fromkeys(notes))


def _published_notes(declaration: TableDeclaration, rows: Sequence[TableRow]) -> list[str]:
    """Where published numbers stand, and where their source is silent about the preset."""
    rows = [row for row in rows if row.is_published]
    if not rows:
        return []
    tables: dict[str, dict[str, None]] = {}  # source -> its tables, in order
    for row in rows:
        for cell in row.cells:
            for part in cell.sources:
                table, _, source = part.partition(": ")
                tables.setdefault(source, {})[table] = None
    listing = "; ".join(f"{', '.join(names)}: {source}" for source, names in tables.items())
    notes = [f"† Published, not measured here. {listing}."]
    silent = []
    for index, column in enumerate(declaration.columns):
        published = [row for row in rows if row.cells[index].value is not None]
        without = [row.name for row in published if row.cells[index].preset is None]
        if without:
            which = "all rows" if len(without) == len(published) else ", ".join(without)
            silent.append(f"{_name(column)} ({which})")
    if silent:
        notes.append(f"Preset not stated by the source: {'; '.join(silent)}.")
    return notes


def _check_same(
    what: str, column: ColumnDeclaration, values: Mapping[str, object], *, remedy: str = ""
) -> None:
    distinct = {str(value) for value in values.values()}
    if len(distinct) > 1:
        listing = ", ".join(f"{row}: {value}" for row, value in sorted(values.items()))
        remedy = remedy or "Delete the records that differ and measure them again under the same"
        raise ConfigError(
            f"The column {_name(column)} would mix more than one {what} ({listing}). "
            f"{remedy} {what}."
        )


def _preset(record: Record) -> str:
    return f"{record.preset} v{record.preset_version}"


def _spent(record: Record) -> dict[str, object]:
    """Limits of the run that were set."""
    return {key: value for key, value in record.budget.items() if value is not None}


def _name(column: ColumnDeclaration) -> str:
    """The column in one line, e.g. "Zero-shot val"."""
    return f"{column.group} {column.title}".replace("\n", " ").strip()


def _position(order: list[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _column_metrics(record: Record) -> list[str]:
    """Metrics of a record that get a column by themselves: the paper's, else the primary one."""
    if record.cell.protocol == "retrieval":
        pair = ["image_to_text_recall@1", "text_to_image_recall@1"]
        if all(metric in record.metrics for metric in pair):
            return pair
    if record.cell.protocol == "detection":
        return [metric for metric in ("box_ap", "mask_ap") if metric in record.metrics]
    assert record.primary_metric is not None
    return [record.primary_metric]
