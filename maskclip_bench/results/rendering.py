"""A filled table as Markdown, for the terminal, and as CSV; the picture is in `picture.py`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pandas as pd

from maskclip_bench.escaping import csv_cell, markdown, one_line, visible
from maskclip_bench.results.cell_text import EMPTY_TEXT, cell_delta, cell_number, cell_spread
from maskclip_bench.results.table_model import ColumnDeclaration, Table, TableCell, percent

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text


def to_markdown(table: Table) -> str:
    """GitHub-flavoured Markdown: best bold, intervals and differences in small print."""
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
    remarks = [table.caption, *table.notes]
    lines += ["", *[f"{markdown(remark)}  " for remark in remarks if remark]]
    return "\n".join(line.rstrip() if not line.endswith("  ") else line for line in lines) + "\n"


def to_terminal(table: Table, *, width: int | None = None) -> Group:
    """A rich renderable: table and notes.

    Args:
        table: The table.
        width: Columns of the terminal; None asks it. Where one line a cell does not fit,
            intervals and differences go below the numbers.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    width = width or shutil.get_terminal_size().columns
    remarks = [one_line(remark) for remark in (table.caption, *table.notes) if remark]
    notes = [Text(remark, style="dim") for remark in remarks]
    if table.is_empty:
        return Group(Text(one_line(table.title), style="bold"), Text(EMPTY_TEXT), *notes)
    names_width = max(len(one_line(row.label)) for row in table.rows)
    columns = range(len(table.columns))
    widths = [_column_width(table, index, stacked=False) + 3 for index in columns]
    stacked = names_width + 3 + sum(widths) > width
    if stacked:
        widths = [_column_width(table, index, stacked=True) + 1 for index in columns]
    padding = 0 if stacked else 1
    views = []
    for block in _blocks(widths, width - names_width - 2 * padding):
        view = RichTable(
            box=box.SIMPLE_HEAD, header_style="", padding=(0, padding), show_edge=False
        )
        view.add_column("", no_wrap=True, min_width=names_width)
        previous = None
        for index in block:
            column = table.columns[index]
            shown = column.group if column.group != previous else ""
            previous = column.group
            title = Text(f"{one_line(shown)}\n", style="italic cyan")
            title.append(visible(column.title), style="bold not italic")
            view.add_column(title, justify="center", min_width=widths[index] - 1 - 2 * padding)
        for position, row in enumerate(table.rows):
            following = table.rows[position + 1 : position + 2]
            view.add_row(
                Text(one_line(row.label)),
                *(
                    _terminal_cell(row.cells[index], table.columns[index], stacked=stacked)
                    for index in block
                ),
                end_section=bool(following) and following[0].group != row.group,
            )
        views.append(view)
    return Group(Text(one_line(table.title), style="bold"), *views, Text(), *notes)


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
            "num_seeds": cell.num_seeds,
            "difference": _points(cell.delta, column),
            "difference_low": _points(cell.delta_interval and cell.delta_interval[0], column),
            "difference_high": _points(cell.delta_interval and cell.delta_interval[1], column),
            "p_value": _p_value(cell.p_value),
            "adjusted_p_value": _p_value(cell.adjusted_p_value),
            "covers": cell.covers,
            "best": cell.best,
        }
        for row in table.rows
        for cell, column in zip(row.cells, table.columns, strict=True)
    ]
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")


def _markdown_header(column: ColumnDeclaration) -> str:
    parts = [column.group, *column.title.split("\n")]
    return "<br>".join(markdown(part) for part in parts if part)


def _markdown_cell(cell: TableCell, column: ColumnDeclaration) -> str:
    number = cell_number(cell, column)
    if cell.best:
        number = f"**{number}**"
    delta = cell_delta(cell, column)
    small = [cell_spread(cell, column), f"({markdown(delta)})" if delta else ""]
    print_small = " ".join(part for part in small if part)
    return f"{number} <sub>{print_small}</sub>" if print_small else number


def _terminal_cell(cell: TableCell, column: ColumnDeclaration, *, stacked: bool) -> Text:
    from rich.text import Text

    styles = {"failed": "red", "missing": "dim", "chance": "dim"}
    text = Text(
        cell_number(cell, column), style="bold" if cell.best else styles.get(cell.origin, "")
    )
    spread, delta = cell_spread(cell, column), cell_delta(cell, column)
    separator = "\n" if stacked else " "
    if spread:
        text.append(separator + spread, style="dim not bold")
    if delta:
        colour = "green" if (cell.delta or 0) >= 0 else "red"
        text.append(separator + delta, style=f"{colour} not bold" if cell.is_clear else "not bold")
    return text


def _column_width(table: Table, index: int, *, stacked: bool) -> int:
    """Characters a column needs in the terminal; headers may wrap between words."""
    column = table.columns[index]
    parts = [*visible(column.group).split(), *visible(column.title).split()]
    for row in table.rows:
        cell = row.cells[index]
        pieces = [cell_number(cell, column), cell_spread(cell, column), cell_delta(cell, column)]
        parts += pieces if stacked else [" ".join(piece for piece in pieces if piece)]
    return max(len(part) for part in parts)


def _blocks(widths: list[int], available: int) -> list[list[int]]:
    """Column indices in runs that fit the terminal; at least one column a run."""
    blocks: list[list[int]] = [[]]
    used = 0
    for index, width in enumerate(widths):
        if blocks[-1] and used + width > available:
            blocks.append([])
            used = 0
        blocks[-1].append(index)
        used += width
    return blocks


def _points(value: float | None, column: ColumnDeclaration) -> str | None:
    return None if value is None else f"{100 * value:.{column.decimals}f}"


def _p_value(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
