"""What `maskclip-bench run` shows: cells, what was left out, failures; and what `--why` says."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from maskclip_bench.cli.plan_view import show_reasons
from maskclip_bench.escaping import markup

if TYPE_CHECKING:
    from maskclip_bench.results.records import Record, RecordStore
    from maskclip_bench.results.table_model import Table
    from maskclip_bench.tasks.cell import LeftOut
    from maskclip_bench.tasks.execution import RunResult
    from maskclip_bench.tasks.plan import Plan
    from maskclip_bench.tasks.why import Why


def final_tables(
    plan: Plan, result: RunResult, store: RecordStore, *, baseline: str | None = None
) -> list[Table]:
    """Exactly the cells that were asked for, measured just now or long ago; one table a world.

    Rows and columns are in the order of the plan.

    Args:
        plan: What was asked for.
        result: What was measured just now.
        store: Of the records and their outcomes.
        baseline: Row to compare with; the first one, where it is None or not measured.

    Raises:
        ConfigError: The records do not belong into one table.
        DataError: Their outcomes do not fit each other.
    """
    from maskclip_bench.results.tables import recorded_tables

    now = {(record.row_id, record.task): record for record in (*result.measured, *result.failed)}
    found = [now.get((cell.row_id, cell.column.name), cell.recorded) for cell in plan.cells]
    seeds: dict[str, list[int]] = {}
    for cell in plan.cells:
        asked = seeds.setdefault(cell.row.name, [])
        if cell.row.seed not in asked:
            asked.append(cell.row.seed)
    records = [record for record in found if record is not None]
    return recorded_tables(
        records,
        store,
        baseline=baseline if any(r.cell.backbone == baseline for r in records) else None,
        names={cell.row.name: cell.row.declaration.display_name for cell in plan.cells},
        tasks=list(dict.fromkeys(cell.column.name for cell in plan.cells)),
        seeds=seeds,
    )


def show_asked_for(
    left_out: Sequence[LeftOut], output: Console, *, told: Sequence[Record] = ()
) -> None:
    """Why each thing that was asked for by name was left out, each reason once.

    Args:
        left_out: Of the run.
        output: Where to print.
        told: Failed cells, whose errors are shown beside them.
    """
    shown = {record.error.message for record in told if record.error is not None}
    show_reasons(
        "asked for by name:",
        [
            (item.what, str(item.error))
            for item in left_out
            if item.error is not None and str(item.error) not in shown
        ],
        output,
    )


def left_out_line(left_out: Sequence[LeftOut], command: Sequence[str]) -> str:
    """One line: how much of what was asked for is left out, why, and what lists it.

    Args:
        left_out: Of the run.
        command: The words after `maskclip-bench` that list it.
    """
    reasons: dict[str, int] = {}
    for item in left_out:
        reasons[item.why] = reasons.get(item.why, 0) + 1
    counted = "; ".join(f"{number} because {why}" for why, number in reasons.items())
    return f"Left out: {counted}. Names and remedies: maskclip-bench {shlex.join(command)}"


def show_failed(failed: Sequence[Record], output: Console) -> None:
    """The failed cells; an error of several is shown once, whole."""

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
