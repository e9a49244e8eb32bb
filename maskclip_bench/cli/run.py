"""`maskclip-bench run` and `plan`: a suite on this machine, from data to table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from maskclip_bench.cli.options import DeviceOption, WorkspaceOption, console
from maskclip_bench.errors import EXIT_DATA, EXIT_FAILED, ConfigError
from maskclip_bench.runtime import Workspace, default_num_threads, resolve_device

if TYPE_CHECKING:
    from maskclip_bench.tasks.plan import LeftOut, Plan
    from maskclip_bench.tasks.suite import SuiteDeclaration

SuiteOption = Annotated[
    str | None,
    typer.Option("--suite", "-s", help="Named rows x columns; see: maskclip-bench list suites"),
]
BackboneOption = Annotated[
    list[str] | None,
    typer.Option("--backbone", "-b", help="Only this row (repeat for more)."),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Only this column, protocol/dataset; either may be *."),
]
SeedsOption = Annotated[
    str,
    typer.Option(
        "--seeds", help="Pretraining seeds of the rows made here, comma-separated: 0,1,2."
    ),
]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Pieces of work side by side; default 2 on a CPU."),
]


def run_suite(
    suite: SuiteOption = None,
    backbone: BackboneOption = None,
    task: TaskOption = None,
    seeds: SeedsOption = "0",
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = None,
) -> None:
    """Measure every cell of a suite that this machine can measure, and show the table.

    Makes the demo data and the demo rows if they are missing, skips cells already recorded, lists
    what was left out and why. What --backbone and --task name is not left out: its cells are
    recorded as failed, and the exit code is 3. A named row of a zoo is downloaded by its library.
    Interrupt it at any time: the same command goes on.

    For example:

        maskclip-bench run --suite all

        maskclip-bench run --suite demo --seeds 0,1,2

        maskclip-bench run --backbone clip_vit-demo_demo --task "*/demo_objects"
    """
    from maskclip_bench.cli.progress import RunDisplay
    from maskclip_bench.tasks.execution import Execution

    began = time.monotonic()
    target = resolve_device(device)
    place = Workspace.open(workspace)
    chosen = _suite(suite, backbone, task)
    made_plan = _plan(chosen, place, seeds, backbone, task)
    messages = Console(stderr=True, highlight=False)
    num_open = len(made_plan.open_cells)
    num_refused = sum(cell.refused is not None for cell in made_plan.cells)
    messages.print(
        f"{len(made_plan.cells)} cells: {len(made_plan.cells) - num_open} recorded, "
        f"{num_open - num_refused} to measure, {len(made_plan.pretraining)} rows to pretrain first."
        + (f" {num_refused} cannot be measured here." if num_refused else "")
    )
    failed = []
    if num_open:
        with RunDisplay(messages) as display:
            execution = Execution(
                made_plan,
                place,
                device=target,
                num_jobs=jobs or (1 if target.type == "cuda" else min(2, default_num_threads())),
                listener=display,
            )
            failed = execution.run().failed
    output = console()
    _show_left_out(made_plan.left_out, output, remedies=False)
    _show_tables(chosen, place, output)
    for record in failed:
        assert record.error is not None
        first = (record.error.message.splitlines() or [""])[0]
        output.print(
            f"[red]failed[/] {record.row_id}: {record.task}: {record.error.type}: {escape(first)} "
            "(traceback in its record)",
            soft_wrap=True,
        )
    output.print(f"Done in {_duration(time.monotonic() - began)}.")
    if any(item.error is not None for item in made_plan.left_out):
        raise typer.Exit(EXIT_DATA)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def plan(
    suite: SuiteOption = None,
    backbone: BackboneOption = None,
    task: TaskOption = None,
    seeds: SeedsOption = "0",
    workspace: WorkspaceOption = None,
) -> None:
    """Show what `run` would do: cells recorded, cells to measure, what is left out and why."""
    chosen = _suite(suite, backbone, task)
    made_plan = _plan(chosen, Workspace.open(workspace), seeds, backbone, task)
    output = console()
    output.print(_plan_table(made_plan))
    for row in made_plan.pretraining:
        output.print(f"pretrained first: {row.label} ({row.declaration.source.recipe})")
    _show_left_out(made_plan.left_out, output, remedies=True)


def _suite(
    name: str | None, backbones: list[str] | None, tasks: list[str] | None
) -> SuiteDeclaration:
    """The named suite, narrowed to `backbones` and `tasks`; without a name, those alone."""
    from maskclip_bench.tasks.suite import load_suite

    if name is None and not (backbones and tasks):
        raise ConfigError(
            "Say what to run: --suite NAME (see: maskclip-bench list suites), or both "
            "--backbone and --task."
        )
    suite = load_suite(name or "all")
    changes: dict[str, object] = {}
    if backbones:
        changes["backbones"] = backbones
    if tasks:
        changes |= {"tasks": tasks, "without_tasks": [], "without_cells": []}
    return suite.model_copy(update=changes)


def _plan(
    suite: SuiteDeclaration,
    place: Workspace,
    seeds: str,
    backbones: list[str] | None,
    tasks: list[str] | None,
) -> Plan:
    """The suite's plan; what the command names is asked for, not only part of a suite."""
    from maskclip_bench.tasks.plan import Named, make_plan

    named = Named.of(backbones or [], tasks or [])
    made = make_plan(suite, place, seeds=_seeds(seeds), named=named)
    if not made.cells and not made.left_out:
        raise ConfigError(
            "There is no cell: a row of the demo world meets only columns of the demo world, and "
            "likewise in the real world. The worlds stand in: maskclip-bench list backbones, and "
            "maskclip-bench list tasks."
        )
    return made


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--seeds {text!r} is not a list of whole numbers such as 0,1,2."
        ) from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {text!r}: seeds are different and not negative.")
    return seeds


def _plan_table(plan: Plan) -> RichTable:
    columns = list(dict.fromkeys(cell.column.name for cell in plan.cells))
    view = RichTable("task", box=None)
    rows = list(dict.fromkeys(cell.row.label for cell in plan.cells))
    for label in rows:
        view.add_column(label, justify="center")
    state = {
        (cell.row.label, cell.column.name): "recorded"
        if cell.recorded
        else ("to measure" if cell.is_to_measure else "cannot be measured")
        for cell in plan.cells
    }
    for column in columns:
        view.add_row(column, *(state.get((label, column), "") for label in rows))
    return view


def _show_left_out(left_out: list[LeftOut], output: Console, *, remedies: bool) -> None:
    """What the machine could not do, grouped by reason; with `remedies`, how to change that."""
    if not left_out:
        return
    output.print(f"\n[bold]Left out[/] ({len(left_out)}):")
    reasons: dict[str, list[LeftOut]] = {}
    for item in left_out:
        reasons.setdefault(item.why, []).append(item)
    for why, items in reasons.items():
        if remedies:
            output.print(f"  [bold]{why}[/]")
            for item in items:
                output.print(f"    {item.what}  [dim]{escape(item.remedy)}[/]")
        else:
            output.print(f"  {why}: {', '.join(item.what for item in items)}")
    for item in left_out:
        if item.error is not None:
            output.print(f"  [red]asked for by name[/]: {escape(str(item.error))}", soft_wrap=True)
    if not remedies:
        output.print("  [dim]How to get them: maskclip-bench plan[/]")


def _show_tables(suite: SuiteDeclaration, place: Workspace, output: Console) -> None:
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.results.tables import build_table, load_table, to_terminal, write_table

    store = RecordStore(place.records)
    for name in suite.tables:
        table = build_table(load_table(name), store)
        if not table.rows:
            continue
        output.print()
        output.print(to_terminal(table))
        for path in write_table(table, place.tables, name):
            output.print(f"[dim]{path}[/]", soft_wrap=True)
    output.print(f"[dim]records: {place.records}[/]", soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
