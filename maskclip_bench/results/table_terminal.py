"""A filled table for the terminal: as wide as it is, nothing is cut.

Where a table does not fit into one block of lines, intervals go below the numbers; where that does
not help, the table is turned (a line a column); what is wider still is split into blocks.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskclip_bench.escaping import one_line, visible
from maskclip_bench.results.cell_text import EMPTY_TEXT, cell_delta, cell_number, cell_spread
from maskclip_bench.results.table_model import ColumnDeclaration, Table, TableCell, runs

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

MIN_WIDTH = 20
"""Columns of a terminal that is taken to have at least these."""
MAX_WORD = 24
"""Longer words of a header are folded."""


def to_terminal(table: Table, *, width: int | None = None) -> Group:
    """A rich renderable: title, rows under their groups, notes.

    Args:
        table: The table.
        width: Columns of the terminal; None asks it.
    """
    from rich.console import Group
    from rich.text import Text

    width = max(MIN_WIDTH, width or shutil.get_terminal_size().columns)
    notes = [Text(one_line(remark), style="dim") for remark in table.remarks]
    title = Text(one_line(table.title), style="bold")
    if table.is_empty:
        return Group(title, Text(EMPTY_TEXT), *notes)
    return Group(title, *_best_layout(table, width), Text(), *notes)


@dataclass(frozen=True)
class _Grid:
    """Lines x columns of cells, each of which is a list of pieces: number, spread, difference."""

    labels: list[str]
    label_groups: list[str]
    headers: list[str]
    header_groups: list[str]
    cells: list[list[list[Text]]]
    stacked: bool = False

    def stack(self) -> _Grid:
        """The same with the pieces of a cell below each other."""
        return _Grid(
            self.labels, self.label_groups, self.headers, self.header_groups, self.cells, True
        )

    def turn(self) -> _Grid:
        """Lines become columns."""
        cells = [list(column) for column in zip(*self.cells, strict=True)]
        return _Grid(self.headers, self.header_groups, self.labels, self.label_groups, cells)

    def lines_of(self, line: int, column: int) -> list[Text]:
        """The printed lines of one cell."""
        from rich.text import Text

        pieces = self.cells[line][column]
        return pieces if self.stacked else [Text(" ").join(pieces)]

    def label_width(self, width: int) -> int:
        """Of the names on the left; long ones are wrapped at half of the terminal."""
        return min(max(_length(line) for label in self.labels for line in label.split("\n")), width)

    def column_width(self, column: int, width: int) -> int:
        """What a column needs: its longest piece, or the longest word above it (up to a limit)."""
        words = f"{self.headers[column]} {self.header_groups[column]}".split()
        limit = min(MAX_WORD, width - self.label_width(width // 2) - self.gap)
        needed = [min(_length(word), limit) for word in words] or [1]
        for line in range(len(self.labels)):
            needed += [text.cell_len for text in self.lines_of(line, column)]
        return max(needed)

    @property
    def gap(self) -> int:
        """Blanks between columns."""
        return 1 if self.stacked else 2

    def blocks(self, width: int) -> list[list[int]]:
        """Columns in runs that fit; at least one column a run."""
        available = width - self.label_width(width // 2)
        blocks: list[list[int]] = [[]]
        used = 0
        for column in range(len(self.headers)):
            needed = self.column_width(column, width) + self.gap
            if blocks[-1] and used + needed > available:
                blocks.append([])
                used = 0
            blocks[-1].append(column)
            used += needed
        return blocks


def _best_layout(table: Table, width: int) -> list[Text]:
    from rich.text import Text

    grid = _grid(table)
    layouts = [grid, grid.stack(), grid.turn(), grid.turn().stack()]
    # The first that needs no second block; else the one with the fewest lines.
    chosen = next((layout for layout in layouts if len(layout.blocks(width)) == 1), None)
    if chosen is not None:
        return _print_block(chosen, chosen.blocks(width)[0], width)
    printed = []
    for layout in (grid.stack(), grid.turn().stack()):
        lines: list[Text] = []
        for block in layout.blocks(width):
            lines += [*_print_block(layout, block, width), Text()]
        printed.append(lines[:-1])
    return min(printed, key=len)


def _grid(table: Table) -> _Grid:
    return _Grid(
        labels=[one_line(row.label) for row in table.rows],
        label_groups=[one_line(row.group) for row in table.rows],
        headers=[visible(column.title) for column in table.columns],
        header_groups=[one_line(column.group) for column in table.columns],
        cells=[
            [_pieces(cell, column) for cell, column in zip(row.cells, table.columns, strict=True)]
            for row in table.rows
        ],
    )


def _pieces(cell: TableCell, column: ColumnDeclaration) -> list[Text]:
    from rich.text import Text

    styles = {"failed": "red", "missing": "dim", "chance": "dim"}
    style = styles.get(cell.origin, "")
    if cell.best or cell.second:
        style = "bold" if cell.best else "underline"
    pieces = [Text(cell_number(cell, column), style=style)]
    spread, delta = cell_spread(cell, column), cell_delta(cell, column)
    if spread:
        pieces.append(Text(spread, style="dim"))
    if delta:
        colour = "green" if (cell.delta or 0) >= 0 else "red"
        pieces.append(Text(delta, style=colour if cell.is_clear else ""))
    return pieces


def _print_block(grid: _Grid, columns: Sequence[int], width: int) -> list[Text]:
    """The lines of some columns: headers, a rule, the lines of each group below its name."""
    from rich.text import Text

    label_width = grid.label_width(width // 2)
    widths = [grid.column_width(column, width) for column in columns]
    total = label_width + sum(widths) + grid.gap * len(widths)
    lines = _group_headers(grid, columns, label_width, widths)
    headers = [
        _wrapped(grid.headers[column], wide, "bold")
        for column, wide in zip(columns, widths, strict=True)
    ]
    lines += _side_by_side(_level([[Text()], *headers]), [label_width, *widths], grid.gap)
    lines.append(Text("─" * min(total, width), style="dim"))
    group = ""
    for position, label in enumerate(grid.labels):
        if grid.label_groups[position] != group:
            group = grid.label_groups[position]
            if lines[-1].style != "dim":
                lines.append(Text("─" * min(total, width), style="dim"))
            lines += _wrapped(group, width, "italic cyan")
        cells = [grid.lines_of(position, column) for column in columns]
        lines += _side_by_side(
            [_wrapped(label, label_width, ""), *cells], [label_width, *widths], grid.gap
        )
    return lines


def _group_headers(
    grid: _Grid, columns: Sequence[int], label_width: int, widths: Sequence[int]
) -> list[Text]:
    """The names above neighbouring columns of one group; nothing if there are none."""
    from rich.text import Text

    names = [grid.header_groups[column] for column in columns]
    if not any(names):
        return []
    texts, spans = [[Text()]], [label_width]
    for first, last, name in runs(names):
        span = sum(widths[first : last + 1]) + grid.gap * (last - first)
        texts.append(_wrapped(name, span, "italic cyan"))
        spans.append(span)
    return _side_by_side(_level(texts), spans, grid.gap)


def _level(headers: Sequence[list[Text]]) -> list[list[Text]]:
    """Headers of one height, empty lines above."""
    from rich.text import Text

    depth = max(len(header) for header in headers)
    return [[Text()] * (depth - len(header)) + header for header in headers]


def _side_by_side(cells: Sequence[list[Text]], widths: Sequence[int], gap: int) -> list[Text]:
    """Lines of one row: the first cell at the left, the others centred in their widths."""
    from rich.text import Text

    lines = []
    for index in range(max(len(cell) for cell in cells)):
        line = Text(no_wrap=True, overflow="fold")
        for position, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            text = cell[index] if index < len(cell) else Text()
            spare = max(0, width - text.cell_len)
            left = 0 if position == 0 else spare // 2
            line.append(" " * (left + (gap if position else 0)))
            line.append_text(text)
            line.append(" " * (spare - left))
        line.rstrip()
        lines.append(line)
    return lines


def _wrapped(text: str, width: int, style: str) -> list[Text]:
    """`text` in lines of at most `width` characters; a longer word is folded, never cut."""
    from rich.cells import chop_cells
    from rich.text import Text

    lines = []
    for part in text.split("\n"):
        line = ""
        for word in part.split():
            longer = f"{line} {word}" if line else word
            if _length(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            *full, line = chop_cells(word, width) or [""]
            lines += full
        if line:
            lines.append(line)
    return [Text(line, style=style) for line in lines] or [Text()]


def _length(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
