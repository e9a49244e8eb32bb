"""Build a table from records and published numbers; a table never flatters.

One preset, one budget, one world and one state of the data a column; an average with a missing cell
is missing; each cell knows whether it was measured here, measured on the demo world, or published
elsewhere.

    maskclip-bench table demo
    maskclip-bench table imagenet --reference paper
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from maskclip_bench.results.records import RecordStore
from maskclip_bench.results.reference import (
    UNKNOWN_PRESET,
    ReferenceRow,
    check_selector,
    select,
)
from maskclip_bench.results.rendering import to_csv, to_markdown, to_terminal
from maskclip_bench.results.table_catalogue import load_table, table_names, table_of_records
from maskclip_bench.results.table_comparisons import with_best, with_differences
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
    "to_terminal",
    "write_table",
]


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
    measured = MeasuredCells.read(declaration, store)
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
    rows = with_differences(rows, declaration, measured, compare=compare)
    rows = with_best(rows, declaration, measured)
    above = []
    if chance:
        cells = [measured.chance_cell(column) for column in declaration.columns]
        above.append(TableRow("chance", "", _with_averages(cells, declaration.columns)))
    return _finished(declaration, above, rows, limits=measured.limits())


def _published_cell(
    row: RowDeclaration, column: ColumnDeclaration, references: Sequence[ReferenceRow]
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
                sources=(_source(found),),
                preset=None if found.preset == UNKNOWN_PRESET else found.preset,
            )
    return MISSING_CELL


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
        check_same(
            "preset",
            column,
            {name: preset for name, preset in presets.items() if preset is not None},
            remedy="Show the table without published numbers, or measure under their preset.",
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
        absent_rows=[row.name for row in rows if row not in present],
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
    )
