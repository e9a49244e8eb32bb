"""A filled table as HTML: one page without scripts that asks for nothing else.

Header cells name what they are of, groups are bodies of the table, and what bold and underlined say
is there for a screen reader too. Light and dark follow the reader's setting.
"""

from __future__ import annotations

from maskclip_bench.escaping import html, one_line
from maskclip_bench.results.cell_text import EMPTY_TEXT, cell_delta, cell_number, cell_spread
from maskclip_bench.results.table_model import (
    ColumnDeclaration,
    Table,
    TableCell,
    TableRow,
    runs,
)

STYLE = """
.mcb { --ink: #1f2328; --grey: #57606a; --line: #d0d7de; --page: #ffffff; --up: #1a7f37;
  --down: #9a4600; color: var(--ink); background: var(--page);
  font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }
@media (prefers-color-scheme: dark) { .mcb { --ink: #e6edf3; --grey: #9da7b3; --line: #30363d;
  --page: #0d1117; --up: #56d364; --down: #ffa657; } }
.mcb .scroll { overflow-x: auto; }
.mcb table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; }
.mcb caption { text-align: left; font-weight: 700; padding: .4em 0; overflow-wrap: anywhere; }
.mcb th, .mcb td { padding: .25em .7em; text-align: center; white-space: nowrap; }
.mcb th[scope=row], .mcb th[scope=rowgroup] { text-align: left; font-weight: 400; }
.mcb th[scope=rowgroup] { font-style: italic; color: var(--grey); }
.mcb th[scope=colgroup] { border-bottom: 1px solid var(--line); }
.mcb tbody { border-top: 1px solid var(--line); }
.mcb small, .mcb .notes { color: var(--grey); }
.mcb .up { color: var(--up); } .mcb .down { color: var(--down); }
.mcb .notes { font-size: 13px; padding-left: 1.2em; max-width: 60em; overflow-wrap: anywhere; }
.mcb .said { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }
@media print { .mcb .scroll { overflow: visible; } }
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(table: Table, *, page: bool = True) -> str:
    """A page, or with `page=False` its part for another page (without `STYLE`)."""
    body = _part(table)
    if not page:
        return body
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html(one_line(table.title))}</title>\n"
        f"<style>{STYLE}body {{ margin: 1.5em; }}</style>\n</head>\n"
        f'<body class="mcb">\n<main>\n{body}</main>\n</body>\n</html>\n'
    )


def _part(table: Table) -> str:
    title = html(one_line(table.title))
    notes = "".join(f"<li>{html(one_line(remark))}</li>\n" for remark in table.remarks)
    notes = f'<ul class="notes">\n{notes}</ul>\n' if notes else ""
    if table.is_empty:
        return f'<div class="mcb">\n<p><b>{title}</b></p>\n<p>{EMPTY_TEXT}</p>\n{notes}</div>\n'
    bodies = []
    for first, last, group in runs([row.group for row in table.rows]):
        rows = [_row(row, table) for row in table.rows[first : last + 1]]
        if group:
            span = len(table.columns) + 1
            label = f'<th scope="rowgroup" colspan="{span}">{html(one_line(group))}</th>'
            rows.insert(0, f"<tr>{label}</tr>\n")
        bodies.append(f"<tbody>\n{''.join(rows)}</tbody>\n")
    return (
        f'<div class="mcb">\n<div class="scroll" role="region" aria-label="{title}" tabindex="0">\n'
        f"<table>\n<caption>{title}</caption>\n{_head(table)}{''.join(bodies)}</table>\n</div>\n"
        f"{notes}</div>\n"
    )


def _head(table: Table) -> str:
    groups = [column.group for column in table.columns]
    rows = []
    if any(groups):
        cells = [
            f'<th scope="colgroup" colspan="{last - first + 1}">{html(one_line(name))}</th>'
            if name
            else f'<td colspan="{last - first + 1}"></td>'
            for first, last, name in runs(groups)
        ]
        rows.append(f"<tr><td></td>{''.join(cells)}</tr>\n")
    titles = [
        f'<th scope="col">{html(column.title).replace(chr(10), "<br>")}</th>'
        for column in table.columns
    ]
    rows.append(f"<tr><td></td>{''.join(titles)}</tr>\n")
    return f"<thead>\n{''.join(rows)}</thead>\n"


def _row(row: TableRow, table: Table) -> str:
    cells = [_cell(cell, column) for cell, column in zip(row.cells, table.columns, strict=True)]
    return f'<tr><th scope="row">{html(one_line(row.label))}</th>{"".join(cells)}</tr>\n'


def _cell(cell: TableCell, column: ColumnDeclaration) -> str:
    number = html(cell_number(cell, column))
    if cell.best:
        number = f'<strong>{number}</strong><span class="said"> (best)</span>'
    elif cell.second:
        number = f'<u>{number}</u><span class="said"> (second best)</span>'
    if cell.tied:
        number += '<span class="said"> (tied with the best)</span>'
    spread, delta = cell_spread(cell, column), cell_delta(cell, column)
    small = []
    if spread:
        small.append(f"<small>{html(spread)}</small>")
    if delta:
        hue = ("up" if (cell.delta or 0) >= 0 else "down") if cell.is_clear else "open"
        small.append(f'<small class="{hue}">{html(delta)}</small>')
    title = f' title="{html(one_line(cell.error))}"' if cell.error else ""
    return f"<td{title}>{' '.join([number, *small])}</td>"
