"""A filled table as a picture, set like a table in a paper: three rules, no vertical lines.

All lengths are in points (1/72 inch); y grows upwards, as in matplotlib.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maskclip_bench.escaping import one_line
from maskclip_bench.results.cell_text import EMPTY_TEXT, cell_delta, cell_number, cell_spread
from maskclip_bench.results.table_model import ColumnDeclaration, Table, TableRow, runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
FONT = "DejaVu Sans"

TITLE_SIZE = 12.0
HEADER_SIZE = 9.5
NUMBER_SIZE = 10.5
SMALL_SIZE = 7.0
NOTE_SIZE = 7.2

INK = "#1f2328"
GREY = "#6e7781"
FAINT = "#d0d7de"
BETTER = "#1a7f37"
WORSE = "#b35900"

MARGIN = 14.0
CELL_PADDING = 9.0
CELL_PADDING_WIDE = 4.0
WIDE = 12
"""Tables of more columns than this have upright headers and little padding."""
LINE_TALL = 31.0
LINE_FLAT = 21.0
GROUP_LINE = 17.0
TITLE_LINE = 14.0
EMPTY_WIDTH = 400.0
NOTE_LINE = 10.5


def to_png(table: Table, path: Path) -> None:
    """Draw `table` and write it as PNG to `path` (whatever its suffix)."""
    to_picture(table, path, "png")


def to_picture(table: Table, path: Path, kind: Literal["png", "svg", "pdf"]) -> None:
    """Draw `table` and write it to `path`; the same table gives the same SVG and PDF.

    The text of an SVG is text; the text of a PDF keeps its font.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    same = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "table", "pdf.fonttype": 42}
    with warnings.catch_warnings(), mpl.rc_context(settings):
        # A name may have characters that the font lacks: they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = _draw(table)
        FigureCanvasAgg(figure)
        figure.savefig(path, format=kind, dpi=DPI, facecolor="white", metadata=same.get(kind))


@dataclass
class _Pen:
    """Draws in points from the top left corner of a figure whose height is known at the end."""

    items: list[tuple[str, tuple[float, ...], dict[str, Any]]] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        self.items.append(("text", (x, y), {"text": one_line(text), **style}))

    def rule(self, x0: float, x1: float, y: float, *, width: float, color: str = INK) -> None:
        self.items.append(("rule", (x0, x1, y), {"width": width, "color": color}))

    def figure(self, width: float, height: float) -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

        figure = Figure(figsize=(width / 72, height / 72))
        for kind, place, style in self.items:
            if kind == "text":
                x, y = place
                style.setdefault("va", "center_baseline")
                style.setdefault("color", INK)
                figure.text(
                    x / width,
                    1 - y / height,
                    style.pop("text"),
                    fontfamily=FONT,
                    parse_math=False,
                    **style,
                )
            else:
                x0, x1, y = place
                line = Line2D(
                    [x0 / width, x1 / width],
                    [1 - y / height] * 2,
                    linewidth=style["width"],
                    color=style["color"],
                    transform=figure.transFigure,
                    solid_capstyle="butt",
                )
                figure.add_artist(line)
        return figure


def _draw(table: Table) -> Figure:
    pen = _Pen()
    if table.is_empty:
        y = 18.0
        for line in _broken(table.title, EMPTY_WIDTH, TITLE_SIZE, bold=True):
            pen.text(MARGIN, y, line, fontsize=TITLE_SIZE, fontweight="bold")
            y += TITLE_LINE
        pen.text(MARGIN, y + 6, EMPTY_TEXT, fontsize=HEADER_SIZE, color=GREY)
        return pen.figure(EMPTY_WIDTH + 2 * MARGIN, y + 24)
    names_width = max(
        *(_text_width(row.label, HEADER_SIZE + 0.5, bold=True) for row in table.rows),
        *(_text_width(row.group, SMALL_SIZE + 1) for row in table.rows),
    )
    widths = _column_widths(table)
    lefts = list(itertools.accumulate(widths, initial=MARGIN + names_width + 2 * CELL_PADDING))
    right = lefts[-1]
    centers = [left + width / 2 for left, width in zip(lefts, widths, strict=False)]

    y = MARGIN + 5
    for line in _broken(table.title, right - MARGIN, TITLE_SIZE, bold=True):
        pen.text(MARGIN, y, line, fontsize=TITLE_SIZE, fontweight="bold")
        y += TITLE_LINE
    pen.rule(MARGIN, right, y, width=1.4)
    y = _header(pen, table, lefts, centers, y)
    pen.rule(MARGIN, right, y, width=0.8)

    group: str | None = None
    for row in table.rows:
        if row.group != group:
            if group is not None:
                pen.rule(MARGIN, right, y, width=0.5, color=GREY)
            if row.group:
                pen.text(
                    MARGIN,
                    y + GROUP_LINE / 2 + 2,
                    row.group,
                    fontsize=SMALL_SIZE + 1,
                    style="italic",
                    color=GREY,
                )
                y += GROUP_LINE
            group = row.group
        y = _row(pen, table, row, centers, y)
    pen.rule(MARGIN, right, y + 1, width=1.4)
    y += 14
    for line in _note_lines(table, right - MARGIN):
        pen.text(MARGIN, y, line, fontsize=NOTE_SIZE, color=GREY)
        y += NOTE_LINE
    return pen.figure(right + MARGIN, y + MARGIN / 2)


def _header(pen: _Pen, table: Table, lefts: list[float], centers: list[float], y: float) -> float:
    """Group headers with their short rules, then column headers -> the y below them."""
    if any(column.group for column in table.columns):
        for first, last, group in runs([column.group for column in table.columns]):
            if group:
                middle = (lefts[first] + lefts[last + 1]) / 2
                pen.text(
                    middle, y + 11, group, fontsize=HEADER_SIZE, ha="center", fontweight="bold"
                )
                inset = CELL_PADDING * 0.6
                pen.rule(
                    lefts[first] + inset, lefts[last + 1] - inset, y + 20, width=0.5, color=GREY
                )
        y += 20
    if _is_wide(table):
        height = max(_text_width(_one_line(column), HEADER_SIZE) for column in table.columns)
        for center, column in zip(centers, table.columns, strict=True):
            pen.text(
                center,
                y + height + 8,
                _one_line(column),
                fontsize=HEADER_SIZE,
                ha="center",
                va="bottom",
                rotation=90,
            )
        return y + height + 14
    titles = [column.title.split("\n") for column in table.columns]
    depth = max(len(lines) for lines in titles)
    for center, lines in zip(centers, titles, strict=True):
        for index, line in enumerate(lines):
            offset = depth - len(lines) + index
            pen.text(center, y + 11 + 11.5 * offset, line, fontsize=HEADER_SIZE, ha="center")
    return y + 20 + 11.5 * (depth - 1)


def _row(pen: _Pen, table: Table, row: TableRow, centers: list[float], y: float) -> float:
    tall = any(cell.delta is not None for cell in row.cells)
    height = LINE_TALL if tall else LINE_FLAT
    first = y + (11.5 if tall else height / 2)
    muted = all(cell.origin in ("chance", "missing") for cell in row.cells)
    color = GREY if muted else INK
    pen.text(MARGIN, y + height / 2, row.label, fontsize=HEADER_SIZE + 0.5, color=color)
    for center, cell, column in zip(centers, row.cells, table.columns, strict=True):
        number, spread = cell_number(cell, column), cell_spread(cell, column)
        number_width = _text_width(number, NUMBER_SIZE, bold=cell.best)
        spread_width = _text_width(spread, SMALL_SIZE) + 2 if spread else 0.0
        left = center - (number_width + spread_width) / 2
        middle = first if cell.delta is not None else y + height / 2
        pen.text(
            left,
            middle,
            number,
            fontsize=NUMBER_SIZE if cell.value is not None else HEADER_SIZE,
            fontweight="bold" if cell.best else "normal",
            color=GREY if cell.value is None or muted else INK,
        )
        if cell.second:
            pen.rule(left, left + number_width, middle + 4.5, width=0.6)
        if spread:
            pen.text(left + number_width + 2, middle, spread, fontsize=SMALL_SIZE, color=GREY)
        if cell.delta is not None:
            hue = (BETTER if cell.delta > 0 else WORSE) if cell.is_clear else GREY
            pen.text(
                center,
                first + 11.5,
                cell_delta(cell, column),
                fontsize=SMALL_SIZE + 0.4,
                ha="center",
                color=hue,
            )
    return y + height


def _column_widths(table: Table) -> list[float]:
    """Width of each column; the columns of a group share what its header needs."""
    widths = []
    padding = CELL_PADDING_WIDE if _is_wide(table) else CELL_PADDING
    for index, column in enumerate(table.columns):
        needed = [HEADER_SIZE]
        if not _is_wide(table):
            needed += [_text_width(line, HEADER_SIZE) for line in column.title.split("\n")]
        for row in table.rows:
            cell = row.cells[index]
            spread = cell_spread(cell, column)
            number = _text_width(cell_number(cell, column), NUMBER_SIZE, bold=True)
            needed.append(number + (_text_width(spread, SMALL_SIZE) + 2 if spread else 0))
            needed.append(_text_width(cell_delta(cell, column), SMALL_SIZE + 0.4))
        widths.append(max(needed) + 2 * padding)
    for first, last, group in runs([column.group for column in table.columns]):
        columns = range(first, last + 1)
        lacking = _text_width(group, HEADER_SIZE, bold=True) + 2 * CELL_PADDING
        lacking -= sum(widths[index] for index in columns)
        for index in columns:
            widths[index] += max(0.0, lacking) / len(columns)
    return widths


def _is_wide(table: Table) -> bool:
    return len(table.columns) > WIDE


def _one_line(column: ColumnDeclaration) -> str:
    return one_line(column.title)


def _note_lines(table: Table, width: float) -> list[str]:
    """Caption and notes, broken to `width`."""
    return [line for remark in table.remarks for line in _broken(remark, width, NOTE_SIZE)]


def _broken(text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """`text` in lines of at most `width`, broken between words, and inside of longer words."""
    lines = []
    line = ""
    for word in one_line(text).split():
        longer = f"{line} {word}" if line else word
        if _text_width(longer, size, bold=bold) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word
        while _text_width(line, size, bold=bold) > width and len(line) > 1:
            fits = next(
                length
                for length in range(len(line) - 1, 0, -1)
                if length == 1 or _text_width(line[:length], size, bold=bold) <= width
            )
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line] if line else lines


def _text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Advance width of one line of text."""
    if not text:
        return 0.0
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, weight="bold" if bold else "normal", size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(one_line(text), font, ismath=False)
    return float(width)
