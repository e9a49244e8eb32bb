"""A filled table as Markdown, CSV and JSON.

The other formats: `table_terminal.py`, `table_latex.py`, `table_html.py`, `picture.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from maskclip_bench.escaping import csv_cell, markdown
from maskclip_bench.results.cell_text import EMPTY_TEXT, cell_delta, cell_number, cell_spread
from maskclip_bench.results.table_model import (
    ColumnDeclaration,
    Table,
    TableCell,
    TableRow,
    percent,
)


def to_markdown(table: Table) -> str:
    """GitHub-flavoured Markdown: best bold, second underlined, the rest in small print."""
    lines = [f"### {markdown(table.title)}", ""]
    if table.is_empty:
        lines.append(EMPTY_TEXT)
    else:
        headers = [_markdown_header(column) for column in table.columns]
        lines += ["| | " + " | ".join(headers) + " |"]
        lines += ["| :-- |" + " :-: |" * len(headers)]
        group = ""
        for row in table.rows:
            if row.group and row.group != group:
                lines.append(f"| *{markdown(row.group)}* |" + " |" * len(headers))
            group = row.group
            cells = [
                _markdown_cell(cell, column)
                for cell, column in zip(row.cells, table.columns, strict=True)
            ]
            lines.append(f"| {markdown(row.label)} | " + " | ".join(cells) + " |")
    lines += ["", *[f"{markdown(remark)}  " for remark in table.remarks]]
    return "\n".join(line.rstrip() if not line.endswith("  ") else line for line in lines) + "\n"


def to_csv(table: Table) -> str:
    """One line a cell: row, column, origin, and numbers in percent with the printed decimals."""
    lines = [
        {
            "row": csv_cell(row.name),
            "group": csv_cell(row.group),
            "column": csv_cell(column.one_line),
            "task": csv_cell(column.task or ""),
            "metric": csv_cell(column.metric or f"average ({column.average})"),
            "origin": cell.origin,
            "percent": None if cell.value is None else percent(cell.value, column.decimals),
            "half_width": _points(cell.half_width, column),
            "low": _points(cell.low, column),
            "high": _points(cell.high, column),
            "num_seeds": cell.num_seeds,
            "difference": _points(cell.delta, column),
            "difference_low": _points(cell.delta_interval and cell.delta_interval[0], column),
            "difference_high": _points(cell.delta_interval and cell.delta_interval[1], column),
            "p_value": _p_value(cell.p_value),
            "adjusted_p_value": _p_value(cell.adjusted_p_value),
            "covers": cell.covers,
            "best": cell.best,
            "second": cell.second,
            "tied": cell.tied,
            "source": csv_cell("; ".join(source.citation for source in cell.sources)),
        }
        for row in table.rows
        for cell, column in zip(row.cells, table.columns, strict=True)
    ]
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")


def to_json(table: Table) -> str:
    """The whole table; numbers are fractions, not rounded.

    {"title", "caption", "world", "baseline", "columns": [{"title", "group", "task", "metric",
    "average", "decimals"}], "rows": [{"name", "group", "backbone", "published", "cells": [...]}],
    "notes"}; the cells of a row are in the order of the columns.
    """
    return json.dumps(as_json(table), indent=2, allow_nan=False) + "\n"


def as_json(table: Table) -> dict[str, Any]:
    """What `to_json` writes, as plain values."""
    return {
        "title": table.title,
        "caption": table.caption,
        "world": table.world,
        "baseline": table.baseline,
        "columns": [
            column.model_dump(include={"title", "group", "task", "metric", "average", "decimals"})
            for column in table.columns
        ],
        "rows": [_json_row(row) for row in table.rows],
        "notes": list(table.notes),
    }


def _json_row(row: TableRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "group": row.group,
        "backbone": row.backbone,
        "published": row.is_published,
        "cells": [_json_cell(cell) for cell in row.cells],
    }


def _json_cell(cell: TableCell) -> dict[str, Any]:
    low, high = cell.delta_interval or (None, None)
    return {
        "origin": cell.origin,
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "half_width": cell.half_width,
        "num_seeds": cell.num_seeds,
        "difference": cell.delta,
        "difference_low": low,
        "difference_high": high,
        "p_value": cell.p_value,
        "adjusted_p_value": cell.adjusted_p_value,
        "covers": cell.covers or None,
        "clear": cell.is_clear,
        "best": cell.best,
        "second": cell.second,
        "tied": cell.tied,
        "preset": cell.preset,
        "error": cell.error or None,
        "sources": [
            {"citation": source.citation, "read_in": source.read_in} for source in cell.sources
        ],
    }


def _markdown_header(column: ColumnDeclaration) -> str:
    parts = [column.group, *column.title.split("\n")]
    return "<br>".join(markdown(part) for part in parts if part)


def _markdown_cell(cell: TableCell, column: ColumnDeclaration) -> str:
    number = cell_number(cell, column)
    if cell.best:
        number = f"**{number}**"
    elif cell.second:
        number = f"<ins>{number}</ins>"
    delta = cell_delta(cell, column)
    small = [cell_spread(cell, column), f"({markdown(delta)})" if delta else ""]
    print_small = " ".join(part for part in small if part)
    return f"{number} <sub>{print_small}</sub>" if print_small else number


def _points(value: float | None, column: ColumnDeclaration) -> str | None:
    return None if value is None else f"{100 * value:.{column.decimals}f}"


def _p_value(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
