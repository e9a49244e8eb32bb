"""What `maskclip-bench run` shows: cells, what was left out, failures; and what `--why` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from maskclip_bench.escaping import markup, one_line

if TYPE_CHECKING:
    from maskclip_bench.results.records import Record
    from maskclip_bench.tasks.cell import LeftOut
    from maskclip_bench.tasks.execution import RunResult
    from maskclip_bench.tasks.plan import Plan
    from maskclip_bench.tasks.why import Why


def cells_table(plan: Plan, result: RunResult) -> RichTable:
    """The scores of exactly the cells that were asked for, measured just now or long ago.

    Each is the primary metric with half the width of its 95 % interval, in percent.
    """
    now = {(record.row_id, record.task): record for record in (*result.measured, *result.failed)}
    entries = []
    for cell in plan.cells:
        record = now.get((cell.row_id, cell.column.name), cell.recorded)
        entries.append((cell.row.label, cell.column.name, _score(record)))
    return _grid(entries)


def _score(record: Record | None) -> str:
    if record is None:
        return "left out"
    if record.status == "failed":
        return "failed"
    metric = record.primary
    width = "" if metric.half_width is None else f" ±{100 * metric.half_width:.1f}"
    return f"{100 * metric.value:.1f}{width}"


def _grid(entries: Sequence[tuple[str, str, str]]) -> RichTable:
    """A table of (column, line, text)."""
    view = RichTable("task", box=None)
    labels = list(dict.fromkeys(label for label, _, _ in entries))
    for label in labels:
        view.add_column(Text(one_line(label)), justify="center")
    found = {(label, task): text for label, task, text in entries}
    for task in dict.fromkeys(task for _, task, _ in entries):
        view.add_row(
            Text(one_line(task)), *(Text(found.get((label, task), "")) for label in labels)
        )
    return view


def show_left_out(left_out: Sequence[LeftOut], output: Console, *, remedies: bool) -> None:
    """What the machine could not do, grouped by reason; with `remedies`, how to change that."""
    if not left_out:
        return
    output.print(f"\n[bold]Left out[/] ({len(left_out)}):")
    reasons: dict[str, list[LeftOut]] = {}
    for item in left_out:
        reasons.setdefault(item.why, []).append(item)
    for why, items in reasons.items():
        if remedies:
            output.print(f"  [bold]{markup(why)}[/]")
            for item in items:
                output.print(f"    {markup(item.what)}  [dim]{markup(item.remedy)}[/]")
        else:
            output.print(f"  {markup(why)}: {markup(', '.join(item.what for item in items))}")
    for item in left_out:
        if item.error is not None:
            output.print(f"  [red]asked for by name[/]: {markup(str(item.error))}", soft_wrap=True)
    if not remedies:
        output.print("  [dim]How to get them: maskclip-bench plan[/]")


def show_failed(failed: Sequence[Record], output: Console) -> None:
    """The failed cells; an error of several is shown once, whole."""
    from maskclip_bench.cli.plan_view import show_reasons

    def said(record: Record) -> str:
        error = record.error
        return "unknown" if error is None else f"{error.type}: {error.message}".rstrip(": ")

    reasons = [(f"{record.row_id}/{record.task}", said(record)) for record in failed]
    show_reasons("failed", reasons, output)
    if failed:
        output.print("  [dim](tracebacks are in the records)[/]")


def show_why(why: Why, output: Console) -> None:
    """Whether a record holds, and what changed since it was made."""
    from maskclip_bench.tasks.why import PARTS

    if why.record is None:
        output.print(f"{markup(why.cell)} has no record: it was not measured yet.")
        return
    if why.record.status == "failed":
        error = why.record.error
        said = f"{error.type}: {error.message}" if error else "unknown"
        output.print(f"{markup(why.cell)} failed and is tried again. It said: {markup(said)}")
    elif why.holds:
        output.print(f"{markup(why.cell)} holds: all that it depends on is as it was.")
    else:
        output.print(f"{markup(why.cell)} is measured again. Changed:")
    for part, (then, now) in why.changes.items():
        output.print(f"  [bold]{markup(part)}[/]: {markup(PARTS.get(part, part))}")
        output.print(f"    then {markup(then)}, now {markup(now)}", soft_wrap=True)
    if why.other:
        output.print("Other software than then (this alone measures nothing again):")
    for name, (then, now) in why.other.items():
        output.print(f"  {markup(name)}: then {markup(then)}, now {markup(now)}", soft_wrap=True)
