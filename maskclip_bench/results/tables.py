"""Build a table from records and published numbers; a table never flatters.

One preset, one budget, one world and one state of the data a column; an average with a missing cell
is missing; each cell knows whether it was measured here, measured on the demo world, or published
elsewhere.

    maskclip-bench table demo
    maskclip-bench table imagenet --reference paper
    maskclip-bench table -b clip_vit-demo_demo -b slip_vit-demo_demo -t "*/demo_objects"
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from maskclip_bench.config import World
from maskclip_bench.errors import ConfigError
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.reference import (
    UNKNOWN_PRESET,
    ReferenceRow,
    check_selector,
    load_papers,
    select,
    source_of,
)
from maskclip_bench.results.rendering import to_csv, to_json, to_markdown
from maskclip_bench.results.table_catalogue import (
    choose_records,
    load_table,
    table_names,
    table_of_records,
)
from maskclip_bench.results.table_comparisons import (
    measured_p_values,
    with_differences,
    with_marks,
    with_ties,
)
from maskclip_bench.results.table_files import write_table
from maskclip_bench.results.table_measured import MeasuredCells, check_same
from maskclip_bench.results.table_model import (
    MISSING_CELL,
    ColumnDeclaration,
    RowDeclaration,
    Table,
    TableCell,
    TableDeclaration,
    TableRow,
)
from maskclip_bench.results.table_notes import table_notes
from maskclip_bench.results.table_terminal import to_terminal

__all__ = [
    "ColumnDeclaration",
    "RowDeclaration",
    "Table",
    "TableCell",
    "TableDeclaration",
    "TableRow",
    "build_table",
    "choose_records",
    "load_table",
    "recorded_tables",
    "table_names",
    "table_of_records",
    "to_csv",
    "to_json",
    "to_markdown",
    "to_terminal",
    "write_table",
]

TITLES: dict[World, str] = {"real": "Measured here", "demo": "Measured here, on the demo world"}
"""Of tables that are not declared."""


def build_table(
    declaration: TableDeclaration,
    store: RecordStore | None = None,
    *,
    references: Sequence[ReferenceRow] = (),
    chance: bool = False,
    compare: bool = True,
    records: Sequence[Record] | None = None,
) -> Table:
    """Fill a declared table.

    Args:
        declaration: From `load_table` or `table_of_records`.
        store: Records of a workspace; None leaves the measured rows out.
        references: Published numbers (`reference.load_references`); none leaves their rows out.
        chance: Add a row with the score of guessing.
        compare: Test the differences to the baseline, and to the best of each column, on the
            stored outcomes.
        records: Show these and no others; None = whatever the store has of the declared cells.

    Raises:
        ConfigError: Two presets, task versions, budgets, data or worlds would meet in one column.
        UnknownNameError: A row selects a published number that does not exist.
        DataError: A record was written by a newer version, or outcomes do not fit each other.
        StorageError: A record cannot be read.
    """
    references = list(references)
    if references:
        for row in declaration.rows:
            for selector in row.published:
                check_selector(selector, references)
    measured = MeasuredCells.read(declaration, store, records)
    measured.check()
    papers = load_papers() if references else {}
    rows = []
    for row in declaration.rows:
        if row.backbone is not None:
            cells = [measured.cell(row, column) for column in declaration.columns]
        elif references:
            cells = [
                _published_cell(row, column, references, papers) for column in declaration.columns
            ]
        else:
            continue
        averaged = _with_averages(cells, declaration.columns, measured)
        rows.append(TableRow(row.name, row.group, averaged, row.backbone))
    _check_published_presets(declaration, rows)
    rows = with_differences(rows, declaration, measured, compare=compare)
    rows = with_marks(rows, declaration, measured)
    if compare:
        tests = measured_p_values(rows, declaration, measured)
        rows = with_ties(rows, tests, baseline=declaration.baseline)
    above = []
    if chance:
        cells = [measured.chance_cell(column) for column in declaration.columns]
        averaged = _with_averages(cells, declaration.columns, measured)
        if any(cell.value is not None for cell in averaged):
            above.append(TableRow("chance", "", averaged))
    return _finished(declaration, above, rows, limits=measured.limits())


def recorded_tables(
    records: Sequence[Record],
    store: RecordStore,
    *,
    names: Mapping[str, str] | None = None,
    tasks: Sequence[str] = (),
    baseline: str | None = None,
    seeds: Mapping[str, Sequence[int]] | None = None,
    chance: bool = True,
    compare: bool = True,
) -> list[Table]:
    """Exactly these records as tables, one a world; the first row is the baseline.

    Args:
        records: The cells, failed ones included.
        store: Of their outcomes.
        names: Display names of backbones, in the order of the rows.
        tasks: "protocol/dataset" in the order of the columns.
        baseline: Backbone to compare with instead of the first row.
        seeds: Of a backbone, only these; all by default.
        chance: Add a row with the score of guessing.
        compare: Test the differences to the baseline.

    Raises:
        ConfigError: The records do not belong into one table, or the baseline is not among them.
        DataError: Their outcomes do not fit each other.
    """
    tables = []
    known = {record.cell.backbone for record in records}
    if baseline is not None and baseline not in known:
        raise ConfigError(
            f"The baseline {baseline!r} is not among the rows: {', '.join(sorted(known))}. "
            "Name one of them."
        )
    worlds: list[World] = ["real", "demo"]
    for world in worlds:
        shown = [record for record in records if record.cell.world == world]
        if not shown:
            continue
        declaration = table_of_records(
            shown,
            title=TITLES[world],
            world=world,
            names=names,
            tasks=tasks,
            baseline=baseline,
            seeds=seeds,
        )
        if declaration.baseline is None and len(declaration.rows) > 1:
            first = declaration.rows[0].backbone
            declaration = declaration.model_copy(update={"baseline": first})
        tables.append(
            build_table(declaration, store, chance=chance, compare=compare, records=shown)
        )
    return tables


def _published_cell(
    row: RowDeclaration,
    column: ColumnDeclaration,
    references: Sequence[ReferenceRow],
    papers: Mapping[str, str],
) -> TableCell:
    if column.task is None or column.metric is None:
        return MISSING_CELL
    for selector in row.published:
        found = select(
            references, selector, task=column.task, metric=column.metric, preset=column.preset
        )
        if found is not None:
            return TableCell(
                "published",
                value=found.fraction,
                sources=(source_of(found, papers),),
                preset=None if found.preset == UNKNOWN_PRESET else found.preset,
            )
    return MISSING_CELL


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
        check_same(
            "preset",
            column,
            {name: preset for name, preset in presets.items() if preset is not None},
            remedy="Show the table without published numbers, or measure under their preset.",
        )


def _with_averages(
    cells: Sequence[TableCell], columns: Sequence[ColumnDeclaration], measured: MeasuredCells
) -> tuple[TableCell, ...]:
    """Fill the average columns of a row.

    One missing member makes the average missing, and so do members of two directions, of which one
    is better when it is higher and one when it is lower.
    """
    filled = list(cells)
    for index, column in enumerate(columns):
        if column.average is None:
            continue
        chosen = measured.members(column)
        members = [cell for cell, other in zip(cells, columns, strict=True) if other in chosen]
        values = [cell.value for cell in members if cell.value is not None]
        directions = {measured.higher_is_better(other) for other in chosen}
        if members and len(values) == len(members) and len(directions) == 1:
            filled[index] = TableCell(
                members[0].origin,
                value=statistics.fmean(values),
                num_seeds=min(cell.num_seeds for cell in members),
                sources=tuple(dict.fromkeys(source for cell in members for source in cell.sources)),
                preset=members[0].preset,
            )
    return tuple(filled)


def _finished(
    declaration: TableDeclaration, above: list[TableRow], rows: list[TableRow], *, limits: str
) -> Table:
    """Leave out empty rows and columns, and write the notes; `above` are rows without notes."""
    kept = [
        index
        for index in range(len(declaration.columns))
        if any(row.cells[index].origin != "missing" for row in rows)
    ]
    dropped = [column for i, column in enumerate(declaration.columns) if i not in kept]
    present = [row for row in rows if any(cell.origin != "missing" for cell in row.cells)]
    notes = table_notes(
        declaration,
        present,
        absent_rows=[row for row in rows if row not in present],
        absent_columns=[column.one_line for column in dropped],
        limits=limits,
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
        baseline=declaration.baseline,
    )
