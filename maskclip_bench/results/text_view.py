"""Small tables of text: for a terminal, and for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from maskclip_bench.escaping import html, one_line

TEXT_WIDTH = 110


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of plain text; the first column is at the left, numbers at the right."""
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


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table, for a notebook."""
    head = "".join(f"<th>{html(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    caption = f"<caption>{html(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
