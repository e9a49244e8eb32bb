"""`maskclip-bench run` and `plan`: a suite on this machine, from data to table."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from maskclip_bench.cli.options import DeviceOption, WorkspaceOption, console
from maskclip_bench.cli.plan_view import plan_as_json, show_missing, show_plan
from maskclip_bench.cli.report import report_of_run
from maskclip_bench.cli.run_how import (
    BatchSizeOption,
    How,
    LauncherOption,
    PrecisionOption,
    RetryFailedOption,
    SlurmOption,
    ValidateOption,
    WorkersOption,
    how_of,
    run_on_cluster,
    say_what_it_took,
    show_estimate,
    together,
)
from maskclip_bench.cli.run_view import (
    final_tables,
    left_out_line,
    show_asked_for,
    show_failed,
    show_why,
)
from maskclip_bench.cli.stopping import stopping_at_once
from maskclip_bench.errors import (
    EXIT_DATA,
    EXIT_DEPENDENCY,
    EXIT_FAILED,
    ConfigError,
    DataError,
    MissingDependencyError,
)
from maskclip_bench.escaping import markup
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    import torch

    from maskclip_bench.results.table_model import Table
    from maskclip_bench.tasks.execution import RunResult
    from maskclip_bench.tasks.plan import Plan
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
    typer.Option(
        "--task",
        "-t",
        help="Only these columns: protocol/data set (* is any), a data set, a protocol.",
    ),
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
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        help="Try a run on this many images of each split. Its records are kept apart.",
    ),
]


def run_suite(
    suite: SuiteOption = None,
    backbone: BackboneOption = None,
    task: TaskOption = None,
    seeds: SeedsOption = "0",
    limit: LimitOption = None,
    precision: PrecisionOption = "fp32",
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    retry_failed: RetryFailedOption = False,
    validate: ValidateOption = False,
    launcher: LauncherOption = "here",
    slurm: SlurmOption = None,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = None,
) -> None:
    """Measure every cell of a suite that this machine can measure, and show the table.

    Makes the demo data and the demo rows if they are missing, skips cells already recorded, and
    ends with a table of exactly the cells asked for and a line on what was left out. What
    --backbone and --task name is not left out: its cells are recorded as failed, and the exit code
    is 3. A named row of a zoo is downloaded by its library. A cell that fails is recorded as
    failed, the others are measured, and the exit code is 1.
    Interrupt it at any time: the same command continues.

    For example:

        maskclip-bench run --suite all

        maskclip-bench run --suite demo --seeds 0,1,2

        maskclip-bench run --backbone clip_vit-demo_demo --task "*/demo_objects"

        maskclip-bench run --backbone clip_vit-demo_demo --task "knn/*" --limit 20

        torchrun --nproc-per-node 8 -m maskclip_bench run --suite slip26

        maskclip-bench run --suite slip26 --launcher slurm --slurm slurm_partition=gpu
    """
    began = time.monotonic()
    opened = Workspace.open(workspace)
    how = how_of(precision, batch_size, workers, retry_failed, launcher, slurm, validate)
    with stopping_at_once():  # several seconds of imports
        importlib.import_module("maskclip_bench.tasks.execution")
    with together(how, opened, device) as target:
        if target is None:
            return  # a rank that helped; rank 0 says what came of it
        with stopping_at_once():
            chosen = _suite(suite, backbone, task)
            made_plan = _plan(chosen, opened, seeds, backbone, task, limit, how)
        baseline = None if backbone else _baseline(chosen)
        whole_suite = limit is None and not (backbone or task)
        ahead = partial(_make_ahead, made_plan, opened) if whole_suite else None
        result = _execute(made_plan, opened, target, jobs, how, baseline, ahead)
        took = say_what_it_took(made_plan, opened, target, how)
    output = console()
    left_out = [*made_plan.left_out, *result.left_out]
    show_asked_for(left_out, output, told=result.failed)
    show_failed(result.failed, output)
    output.print(f"Done in {_duration(time.monotonic() - began)}.")
    if took:
        output.print(took, markup=False, soft_wrap=True)
    _say_where(opened, limit, output)
    tables = _show_tables(chosen, opened, output) if whole_suite else {}
    _show_cells(made_plan, result, opened, output, baseline)
    if left_out:
        words = _words(suite, backbone, task, seeds, limit)
        line = left_out_line(left_out, ["plan", *words])
        output.print(line, style="dim", soft_wrap=True, markup=False)
    if whole_suite and suite is not None:
        report_of_run(suite, chosen, opened, tables, output)
    code = _exit_code(made_plan, result)
    if code:
        raise typer.Exit(code)


def _exit_code(made_plan: Plan, result: RunResult) -> int:
    """Of a run: see `errors`. An extra that is not installed is told apart from all else."""
    refusals = [item.error for item in made_plan.left_out if item.error is not None]
    if refusals:
        missing = all(isinstance(error, MissingDependencyError) for error in refusals)
        return EXIT_DEPENDENCY if missing else EXIT_DATA
    kinds = {record.error.type if record.error else "" for record in result.failed}
    if kinds == {MissingDependencyError.__name__}:
        return EXIT_DEPENDENCY
    return EXIT_FAILED if kinds else 0


def plan(
    suite: SuiteOption = None,
    backbone: BackboneOption = None,
    task: TaskOption = None,
    seeds: SeedsOption = "0",
    limit: LimitOption = None,
    cells: Annotated[
        bool, typer.Option("--cells", help="Every cell, and how to get what is missing.")
    ] = False,
    why: Annotated[
        str | None,
        typer.Option(
            "--why",
            help="A cell, row/protocol/data set: what changed since it was recorded.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Show what `run` would do: cells recorded, cells to measure, what is left out and why.

    Without any option it is of `--suite all`.

    For example:

        maskclip-bench plan --suite all

        maskclip-bench plan --backbone clip_vit-demo_demo --task demo_objects --cells

        maskclip-bench plan --why clip_vit-demo_demo/knn/demo_objects
    """
    with stopping_at_once():  # it writes nothing
        opened = Workspace.open(workspace)
        if why is not None:
            _explain(why, opened, limit)
            return
        chosen = _suite(suite if suite or backbone or task else "all", backbone, task)
        made_plan = _plan(chosen, opened, seeds, backbone, task, limit)
        if as_json:
            print(json.dumps(plan_as_json(made_plan), indent=2))
            return
        output = console()
        show_plan(made_plan, output, cells=cells)
        show_estimate(made_plan, opened, output)
        show_missing(made_plan.left_out, output, remedies=cells)


def _explain(cell: str, workspace: Workspace, limit: int | None) -> None:
    from maskclip_bench.tasks.why import explain

    show_why(explain(cell, workspace, limit=limit), console())


def _execute(
    made_plan: Plan,
    workspace: Workspace,
    device: torch.device,
    jobs: int | None,
    how: How,
    baseline: str | None = None,
    ahead: Callable[[Callable[[], None]], None] | None = None,
) -> RunResult:
    """Make the open cells of a plan, with a display of the progress; `ahead` is done when idle."""
    from maskclip_bench.cli.run_display import RunDisplay
    from maskclip_bench.tasks.execution import Execution, RunResult

    messages = console(stderr=True)
    num_open = len(made_plan.open_cells)
    num_refused = sum(cell.refused is not None for cell in made_plan.cells)
    messages.print(
        f"{len(made_plan.cells)} cells: {len(made_plan.cells) - num_open} recorded, "
        f"{num_open - num_refused} to measure, {len(made_plan.pretraining)} rows to pretrain first."
        + (f" {num_refused} cannot be measured here." if num_refused else "")
    )
    if not num_open:
        if how.retry_failed:
            messages.print("No cell of these has a failed record, so nothing is measured again.")
        return RunResult()
    if how.launcher == "slurm":
        return run_on_cluster(made_plan, workspace, device, how, messages)

    def show_so_far(result: RunResult) -> None:
        """The table grows while other rows are still being pretrained."""
        if len(result.measured) + len(result.failed) < num_open - num_refused:
            _show_cells(made_plan, result, workspace, messages, baseline)

    with RunDisplay(messages) as display:
        return Execution(
            made_plan,
            workspace,
            device=device,
            num_jobs=how.num_jobs(jobs, device),
            listener=display,
            features=how.store(workspace),
            row_done=show_so_far if made_plan.pretraining else None,
            when_idle=ahead,
        ).run()


def _make_ahead(made_plan: Plan, workspace: Workspace, between: Callable[[], None]) -> None:
    """Make what takes longest of the tables and the report while the last cells are measured."""
    from maskclip_bench.cli.report import OUTPUT
    from maskclip_bench.report.build import make_sheets
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.results.sample_tests import compare_all

    store = RecordStore(workspace.records)
    rows = {cell.row.name for cell in made_plan.cells}
    tasks = {cell.column.name for cell in made_plan.cells}
    compare_all(store, store.all(backbones=rows, tasks=tasks), between=between)
    columns = [cell.column.declaration for cell in made_plan.cells]
    datasets = {column.name: column for column in columns}
    make_sheets(datasets, workspace, workspace.root / OUTPUT, between=between)


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
    workspace: Workspace,
    seeds: str,
    backbones: list[str] | None,
    tasks: list[str] | None,
    limit: int | None,
    how: How | None = None,
) -> Plan:
    """The suite's plan; what the command names is asked for, not only part of a suite."""
    from maskclip_bench.tasks.plan import Named, make_plan, only_failed

    named = Named.of(backbones or [], tasks or [])
    how = how or How()
    made = make_plan(
        suite, workspace, seeds=_seeds(seeds), named=named, limit=limit, precision=how.precision
    )
    made.validate = how.validate
    if not made.cells and not made.left_out:
        raise ConfigError(
            "There is no cell: in a suite a row of the demo world meets only columns of the demo "
            "world, and likewise in the real world. Name both the row and the data set to measure "
            "it all the same; see: maskclip-bench list backbones, and maskclip-bench list tasks."
        )
    return only_failed(made, workspace) if how.retry_failed else made


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


def _show_tables(
    suite: SuiteDeclaration, workspace: Workspace, output: Console
) -> dict[str, Table]:
    """The suite's tables that have a measured cell, shown and written; by name."""
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.results.tables import build_table, load_table, to_terminal, write_table

    store = RecordStore(workspace.records)
    shown: dict[str, Table] = {}
    for name in suite.tables:
        table = build_table(load_table(name), store)
        if not table.rows:
            continue
        shown[name] = table
        output.print()
        output.print(to_terminal(table, width=output.width))
        for path in write_table(table, workspace.tables, name):
            output.print(str(path), style="dim", soft_wrap=True, markup=False)
    return shown


def _show_cells(
    made_plan: Plan,
    result: RunResult,
    workspace: Workspace,
    output: Console,
    baseline: str | None = None,
) -> None:
    """The table of exactly the cells asked for; a run never ends with an error because of it."""
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.results.tables import to_terminal
    from maskclip_bench.tasks.cell import records_of

    try:
        store = RecordStore(records_of(workspace, made_plan.limit))
        tables = final_tables(made_plan, result, store, baseline=baseline)
    except (ConfigError, DataError) as error:
        output.print(f"\n[yellow]No table of these cells[/]: {markup(error)}", soft_wrap=True)
        return
    for table in tables:
        output.print()
        output.print(to_terminal(table, width=output.width))


def _baseline(suite: SuiteDeclaration) -> str | None:
    """The row that the suite's first table compares with."""
    from maskclip_bench.results.tables import load_table

    return load_table(suite.tables[0]).baseline if suite.tables else None


def _words(
    suite: str | None,
    backbones: list[str] | None,
    tasks: list[str] | None,
    seeds: str,
    limit: int | None,
) -> list[str]:
    """The options of a command line that says the same."""
    words = ["--suite", suite] if suite else []
    words += [word for name in backbones or [] for word in ("--backbone", name)]
    words += [word for name in tasks or [] for word in ("--task", name)]
    words += ["--seeds", seeds] if seeds != "0" else []
    return [*words, *(["--limit", str(limit)] if limit is not None else [])]


def _say_where(workspace: Workspace, limit: int | None, output: Console) -> None:
    from maskclip_bench.tasks.cell import records_of

    text = f"records: {records_of(workspace, limit)}"
    output.print(text, style="dim", soft_wrap=True, markup=False)
    if limit is not None:
        output.print(
            f"These are trials on at most {limit} images of each split, kept apart from the "
            "records that tables are made of."
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
