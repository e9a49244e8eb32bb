"""Tables as the page shows them: numbers as text, links to cells, and what they say in words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskclip_bench import storage
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.report.cells import cell_path
from maskclip_bench.report.selection import Selection
from maskclip_bench.results.cell_text import cell_delta, cell_number, cell_spread
from maskclip_bench.results.paired import holm
from maskclip_bench.results.records import RecordStore
from maskclip_bench.results.table_comparisons import with_ties
from maskclip_bench.results.table_model import ColumnDeclaration, Table, TableCell, TableRow
from maskclip_bench.results.table_notes import TIED_NOTE
from maskclip_bench.results.tables import (
    build_table,
    load_table,
    table_of_records,
    to_csv,
    to_markdown,
)

logger = logging.getLogger(__name__)

EVERYTHING = "everything"
"""Name of the generated table of all recorded cells; with two worlds, one each."""


def declared_tables(
    selection: Selection,
    store: RecordStore,
    *,
    built: Mapping[str, Table] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Table]:
    """The declared tables that have a measured cell.

    Args:
        selection: Names them.
        store: The records.
        built: Tables that the caller has filled already, by name.
        progress: Told of the tables.
    """
    found: dict[str, Table] = {}
    for done, name in enumerate(selection.tables):
        try:
            table = (built or {}).get(name) or build_table(load_table(name), store)
        except MaskCLIPBenchError as error:
            logger.warning("The table %s is not in the report: %s", name, error)
            continue
        if any(cell.value is not None for row in table.rows for cell in row.cells):
            found[name] = table
        progress("tables", done + 1, len(selection.tables))
    return found


def tables_of_everything(
    selection: Selection,
    store: RecordStore,
    columns: Sequence[Mapping[str, Any]],
    pairs: Mapping[str, Sequence[Mapping[str, Any] | None]],
) -> dict[str, Table]:
    """A table of all recorded cells, one for each world; its tests are those of `pairs`."""
    worlds = sorted({record.cell.world for record in selection.all() if record.status == "ok"})
    found = {}
    for world in worlds:
        titles = {row.backbone: row.label for row in selection.rows}
        try:
            declaration = table_of_records(
                selection.all(),
                title="All recorded cells",
                world=world,
                names=_distinct(titles),
                tasks=selection.tasks,
                baseline=selection.baseline,
            )
            table = build_table(declaration, store, compare=False)
        except MaskCLIPBenchError as error:
            logger.warning("The table of all cells is not in the report: %s", error)
            continue
        if declaration.baseline is not None:
            table = _with_tests(table, declaration.baseline, columns, pairs)
        table = _with_ties(table, columns, pairs)
        table = replace(table, columns=tuple(_named(column, selection) for column in table.columns))
        found[EVERYTHING if len(worlds) == 1 else f"{EVERYTHING}_{world}"] = table
    return found


def _named(column: ColumnDeclaration, selection: Selection) -> ColumnDeclaration:
    """A column with its data set's name for people."""
    dataset = (column.task or "").partition("/")[2]
    task = selection.datasets.get(dataset)
    if task is None:
        return column
    _, _, metric = column.title.partition("\n")
    return column.model_copy(update={"title": f"{task.display_name}\n{metric}"})


def _with_tests(
    table: Table,
    baseline: str,
    columns: Sequence[Mapping[str, Any]],
    pairs: Mapping[str, Sequence[Mapping[str, Any] | None]],
) -> Table:
    """The same table with the tests of its differences to the baseline, corrected together."""
    place = {(column["task"], column["metric"]): i for i, column in enumerate(columns)}
    cells = [list(row.cells) for row in table.rows]
    tested: list[tuple[int, int, float]] = []
    for r, row in enumerate(table.rows):
        found = pairs.get(f"{row.backbone}|{baseline}")
        turned = pairs.get(f"{baseline}|{row.backbone}")
        tests, sign = (found, 1) if found is not None else (turned, -1)
        for c, column in enumerate(table.columns):
            index = place.get((column.task, column.metric))
            test = None if tests is None or index is None else tests[index]
            if test is None or test["p_value"] is None or cells[r][c].delta is None:
                continue
            ends = sorted((sign * test["low"], sign * test["high"]))
            cells[r][c] = replace(
                cells[r][c],
                delta_interval=(ends[0], ends[1]),
                p_value=test["p_value"],
                covers=test["covers"],
            )
            tested.append((r, c, test["p_value"]))
    for (r, c, _), adjusted in zip(tested, holm([p for _, _, p in tested]), strict=True):
        cells[r][c] = replace(cells[r][c], adjusted_p_value=adjusted)
    rows = tuple(replace(row, cells=tuple(new)) for row, new in zip(table.rows, cells, strict=True))
    note = f"* p ≤ 0.05 after Holm's correction over the {len(tested)} differences of this table."
    return replace(table, rows=rows, notes=(*table.notes, note) if tested else table.notes)


def _with_ties(
    table: Table,
    columns: Sequence[Mapping[str, Any]],
    pairs: Mapping[str, Sequence[Mapping[str, Any] | None]],
) -> Table:
    """The same table, with marks at cells that are not told apart from the best of a column."""
    place = {(column["task"], column["metric"]): i for i, column in enumerate(columns)}

    def p_value(position: int, other: int, index: int) -> float | None:
        first, second = (table.rows[each].backbone for each in (position, other))
        column = place.get((table.columns[index].task, table.columns[index].metric))
        tests = pairs.get(f"{first}|{second}") or pairs.get(f"{second}|{first}")
        test = None if tests is None or column is None else tests[column]
        return None if test is None else test["p_value"]

    rows = tuple(with_ties(list(table.rows), p_value, baseline=table.baseline))
    tied = any(cell.tied for row in rows for cell in row.cells)
    return replace(table, rows=rows, notes=(*table.notes, TIED_NOTE) if tied else table.notes)


def _distinct(titles: Mapping[str, str]) -> dict[str, str]:
    """Labels, with the backbone's name where two have the same."""
    labels = list(titles.values())
    return {
        backbone: label if labels.count(label) == 1 else f"{label} ({backbone})"
        for backbone, label in titles.items()
    }


def view_of(name: str, table: Table, selection: Selection) -> dict[str, Any]:
    """A table for the template: text only."""
    return {
        "name": name,
        "title": table.title,
        "caption": table.caption,
        "notes": list(table.notes),
        "columns": [
            {
                "group": column.group,
                "title": column.title.replace("\n", " · "),
                "one_line": column.one_line,
            }
            for column in table.columns
        ],
        "spans": _spans(table),
        "rows": [_row_view(row, table, selection) for row in table.rows],
    }


def _row_view(row: TableRow, table: Table, selection: Selection) -> dict[str, Any]:
    return {
        "label": row.label,
        "group": row.group,
        "backbone": row.backbone,
        "cells": [
            _cell_view(cell, column, row, selection)
            for cell, column in zip(row.cells, table.columns, strict=True)
        ],
    }


def _cell_view(
    cell: TableCell, column: ColumnDeclaration, row: TableRow, selection: Selection
) -> dict[str, Any]:
    href = None
    records = selection.records.get((row.backbone or "", column.task or ""), {})
    if records:
        href = cell_path(records[min(records)])
    delta = cell_delta(cell, column)
    interval = cell.delta_interval
    up = selection.higher_is_better(column.task, column.metric)
    return {
        "number": cell_number(cell, column),
        "spread": cell_spread(cell, column),
        "delta": delta,
        "sign": "" if not cell.is_clear else "better" if _is_ahead(cell, up) else "worse",
        "best": cell.best,
        "second": cell.second,
        "origin": cell.origin,
        "sort": "" if cell.value is None else f"{cell.value:.6f}",
        "href": href,
        "hint": ""
        if interval is None
        else f"difference {100 * interval[0]:+.1f} to {100 * interval[1]:+.1f} points (95 %)",
    }


def _is_ahead(cell: TableCell, higher_is_better: bool) -> bool:
    return ((cell.delta or 0) > 0) == higher_is_better


def _spans(table: Table) -> list[tuple[str, int]]:
    """Group headers with the number of columns that each covers."""
    spans: list[tuple[str, int]] = []
    for column in table.columns:
        if spans and spans[-1][0] == column.group:
            spans[-1] = (column.group, spans[-1][1] + 1)
        else:
            spans.append((column.group, 1))
    return spans


def sentences(table: Table, selection: Selection) -> list[str]:
    """What a table's tests say of each row against the baseline, one sentence each."""
    tested = [row for row in table.rows if any(cell.p_value is not None for cell in row.cells)]
    if not tested:
        return []
    found = []
    for row in tested:
        ahead: list[str] = []
        behind: list[str] = []
        open_ = 0
        for cell, column in zip(row.cells, table.columns, strict=True):
            if cell.delta is None or cell.p_value is None:
                continue
            if not cell.is_clear:
                open_ += 1
                continue
            text = f"{column.one_line} ({cell_delta(cell, column).rstrip('*')})"
            up = selection.higher_is_better(column.task, column.metric)
            (ahead if _is_ahead(cell, up) else behind).append(text)
        parts = []
        if ahead:
            parts.append(f"clearly better on {_joined(ahead)}")
        if behind:
            parts.append(f"clearly worse on {_joined(behind)}")
        number = len(ahead) + len(behind) + open_
        if open_ and parts:
            parts.append(f"no clear difference on {open_} of {number}")
        elif open_:
            parts.append(f"no clear difference on any of {number} columns")
        found.append(f"{row.name}: {'; '.join(parts)}.")
    return found


def _joined(texts: list[str], *, most: int = 4) -> str:
    shown = texts[:most]
    rest = len(texts) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def write_tables(tables: Mapping[str, Table], folder: Path) -> list[str]:
    """Markdown and CSV of every table, below `data/` -> the files' names.

    Raises:
        StorageError: The disk refused.
    """
    files = []
    for name, table in tables.items():
        for suffix, text in ((".csv", to_csv(table)), (".md", to_markdown(table))):
            file = f"data/table-{name}{suffix}"
            storage.write_text(folder / file, text)
            files.append(file)
    return files
