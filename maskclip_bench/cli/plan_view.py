"""What `maskclip-bench plan` shows: counts for each row and column, and what is wrong or left out.

Everything fits a terminal of 80 columns; names are folded, never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from maskclip_bench.escaping import markup, one_line

if TYPE_CHECKING:
    from maskclip_bench.tasks.cell import LeftOut, PlannedCell
    from maskclip_bench.tasks.plan import Plan

RECORDED, TO_MEASURE, REFUSED = "recorded", "to measure", "not possible"
STATES = (RECORDED, TO_MEASURE, REFUSED)

REMEDIES_AT_MOST = 8
"""Things left out for one reason that are listed with their remedies; of more, only the names."""

NAMED_AT_MOST = 4
"""Cells that share a reason and are named with it; the others are counted."""


def state(cell: PlannedCell) -> str:
    """One of `STATES`."""
    if cell.recorded:
        return RECORDED
    return TO_MEASURE if cell.is_to_measure else REFUSED


def show_plan(plan: Plan, output: Console, *, cells: bool = False) -> None:
    """Counts, or with `cells` every cell; then why some cannot be measured, each reason once."""
    shown = [each for each in STATES if any(state(cell) == each for cell in plan.cells)]
    counts = ", ".join(f"{_number(plan.cells, each)} {each}" for each in shown)
    output.print(f"{len(plan.cells)} cells" + (f": {counts}" if counts else ""))
    if cells:
        for cell in plan.cells:
            output.print(f"{state(cell):<12}  {cell_name(cell)}", markup=False, soft_wrap=True)
    elif plan.cells:
        output.print()
        output.print(_counts("row", plan.cells, lambda cell: cell.row.label, shown))
        output.print()
        output.print(_counts("task", plan.cells, lambda cell: cell.column.name, shown))
    show_reasons(
        "not possible",
        [(cell_name(cell), str(cell.refused)) for cell in plan.cells if cell.refused is not None],
        output,
    )
    if plan.pretraining:
        output.print("\n[bold]Pretrained first:[/]")
    for row in plan.pretraining:
        output.print(f"  {row.label} ({row.declaration.recipe})", markup=False)


def show_missing(left_out: Sequence[LeftOut], output: Console, *, remedies: bool = False) -> None:
    """What this machine cannot do now, by reason; how to change that where it is not too much.

    Args:
        left_out: Of the plan.
        output: Where to print.
        remedies: Say for each how to get it, however many there are.
    """
    if not left_out:
        return
    output.print(f"\n[bold]Left out[/] ({len(left_out)}):")
    reasons: dict[str, list[LeftOut]] = {}
    for item in left_out:
        reasons.setdefault(item.why, []).append(item)
    for why, items in reasons.items():
        output.print(f"  [bold]{markup(why)}[/] ({len(items)})")
        if remedies or len(items) <= REMEDIES_AT_MOST:
            for item in items:
                remedy = f": {item.remedy}" if item.remedy else ""
                output.print(f"    {item.what}{remedy}", markup=False, soft_wrap=True)
        else:
            names = Text(f"{', '.join(one_line(item.what) for item in items)}")
            output.print(Padding(names, (0, 0, 0, 4)))
            output.print(f"    [dim]How to get one: {_how_to_get(items[0])}[/]", soft_wrap=True)
    show_reasons(
        "error:",
        [(item.what, str(item.error)) for item in left_out if item.error is not None],
        output,
    )


def _how_to_get(item: LeftOut) -> str:
    """The command that says it of one thing of a long list."""
    if item.what.startswith("*/"):
        return "maskclip-bench data list"
    return "maskclip-bench plan --backbone NAME --task TASK, or with --cells of all"


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """Every cell with its state, what is pretrained first, what is left out; plain values."""
    return {
        "cells": [
            {
                "backbone": cell.row.name,
                "seed": cell.row.seed,
                "task": cell.column.name,
                "state": state(cell),
                "reason": None if cell.refused is None else str(cell.refused),
            }
            for cell in plan.cells
        ],
        "pretrained_first": [
            {"backbone": row.name, "seed": row.seed, "recipe": row.declaration.recipe}
            for row in plan.pretraining
        ],
        "left_out": [
            {"what": item.what, "why": item.why, "remedy": item.remedy} for item in plan.left_out
        ],
        "limit": plan.limit,
    }


def cell_name(cell: PlannedCell) -> str:
    """Row, protocol and data set, as `plan --why` takes them."""
    return f"{cell.row_id}/{cell.column.name}"


def show_reasons(what: str, reasons: Iterable[tuple[str, str]], output: Console) -> None:
    """Each reason once, whole, below the names of what it is about."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons:
        names.setdefault(reason, []).append(name)
    for reason, about in names.items():
        more = len(about) - NAMED_AT_MOST
        also = f" and {more} more" if more > 0 else ""
        listed = markup(", ".join(about[:NAMED_AT_MOST]))
        output.print(f"\n[red]{what}[/] {listed}{also}", soft_wrap=True)
        for line in reason.splitlines() or [""]:
            output.print(f"  {markup(line)}", soft_wrap=True)


def _number(cells: Iterable[PlannedCell], wanted: str) -> int:
    return sum(state(cell) == wanted for cell in cells)


def _counts(
    kind: str,
    cells: Sequence[PlannedCell],
    key: Callable[[PlannedCell], str],
    shown: Sequence[str],
) -> RichTable:
    """A line for each key, a column for each state."""
    view = RichTable(box=None, pad_edge=False)
    view.add_column(kind, overflow="fold")
    for each in shown:
        view.add_column(each, justify="right", no_wrap=True)
    groups: dict[str, list[PlannedCell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    for name, members in groups.items():
        numbers = [_number(members, each) for each in shown]
        view.add_row(Text(one_line(name)), *(str(number or "") for number in numbers))
    return view
