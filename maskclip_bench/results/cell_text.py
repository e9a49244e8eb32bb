"""The parts of a cell as printed, the same in every format."""

from __future__ import annotations

from maskclip_bench.results.table_model import (
    ColumnDeclaration,
    TableCell,
    percent,
    signed_points,
)

EMPTY_TEXT = "Nothing to show: no cell of this table was measured here."


def cell_number(cell: TableCell, column: ColumnDeclaration) -> str:
    """The number as printed: "44.5", "44.5†" (published), "44.5≈" (tied with the best), or "-"."""
    if cell.value is None:
        return "failed" if cell.origin == "failed" else "-"
    mark = "†" if cell.origin == "published" else "≈" if cell.tied else ""
    return percent(cell.value, column.decimals) + mark


def cell_spread(cell: TableCell, column: ColumnDeclaration) -> str:
    """The half-width as printed, "±2.9", or nothing."""
    return "" if cell.half_width is None else f"±{percent(cell.half_width, column.decimals)}"


def cell_delta(cell: TableCell, column: ColumnDeclaration) -> str:
    """The difference to the baseline as printed, "+3.5" or "+3.5*", or nothing."""
    if cell.delta is None:
        return ""
    return signed_points(cell.delta, column.decimals) + ("*" if cell.is_clear else "")
