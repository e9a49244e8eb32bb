"""`maskclip-bench study`: many runs that answer one question; it goes on after any interruption."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table as RichTable
from rich.text import Text

from maskclip_bench.cli.options import DeviceOption, WorkspaceOption, console
from maskclip_bench.errors import EXIT_FAILED, ConfigError
from maskclip_bench.runtime import Workspace, default_num_threads, resolve_device

if TYPE_CHECKING:
    from maskclip_bench.study.declaration import StudyDeclaration
    from maskclip_bench.study.runs import StudyRun

study_app = typer.Typer(
    help="Studies: plan, run and report many pretrainings that answer one question.",
    no_args_is_help=True,
)

StudyArgument = Annotated[
    str, typer.Argument(help="A study, or its YAML file; see: maskclip-bench study list")
]
StageOption = Annotated[
    list[str] | None,
    typer.Option("--stage", help="Only this stage, or tuning (repeat for more)."),
]
RowOption = Annotated[
    list[str] | None, typer.Option("--row", help="Only this row (repeat for more).")
]
SeedOption = Annotated[
    list[int] | None, typer.Option("--seed", help="Only this seed (repeat for more).")
]


@study_app.command("list")
def list_studies() -> None:
    """Studies that are declared."""
    from maskclip_bench.study.declaration import load_study, study_names

    for name in study_names():
        console().print(f"{name}  {load_study(name).title}", markup=False)


@study_app.command("plan")
def plan_study(
    study: StudyArgument,
    stage: StageOption = None,
    row: RowOption = None,
    seed: SeedOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Show the runs of a study, how far each is, and the core-hours that are left.

    For example:

        maskclip-bench study plan demo_long
    """
    from maskclip_bench.study import tuning
    from maskclip_bench.study.declaration import load_study
    from maskclip_bench.study.runs import TUNING, runs_of, speed_of

    declared, place = load_study(study), Workspace.open(workspace)
    runs = runs_of(declared, stages=stage or [], rows=row or [], seeds=seed or [])
    output = console()
    everything = not (stage or row or seed)
    if declared.tuning is not None and (everything or TUNING in (stage or [])):
        for name in declared.tuning.tries:
            _show_tries(declared, name, place)
        found = [tuning.tries(declared, name, place) for name in declared.tuning.tries]
        runs = [*(each.run for of_row in found for each in of_row), *runs]
    view = RichTable(box=None, pad_edge=False)
    for title in ("run", "stage", "training", "measured", "core-minutes"):
        view.add_column(title, justify="right" if title == "core-minutes" else "left")
    left, shown = 0.0, set[str]()
    for run in runs:
        left += _add_run(view, run, place, again=run.key in shown)
        shown.add(run.key)
    output.print(view)
    output.print(f"\n{len(runs)} runs; {left / 3600:.1f} core-hours left on quiet cores.")
    speed = speed_of(runs, place)
    if speed:
        output.print(
            f"Trainings here have gone at {100 * speed:.0f} % of that speed: "
            f"{left / 3600 / speed:.1f} core-hours at that rate."
        )


def _add_run(view: RichTable, run: StudyRun, place: Workspace, *, again: bool) -> float:
    """Add a line, and return the seconds that are left of the run.

    Args:
        view: Where.
        run: Which.
        place: The study's workspace.
        again: An earlier line counts its training and its checkpoints.
    """
    from maskclip_bench.study.checkpoints import missing_scores, tasks_of
    from maskclip_bench.study.engine import CURVE_SECONDS, is_measured
    from maskclip_bench.study.runs import expected_seconds, progress_of

    progress = progress_of(run, place)
    measured = is_measured(run, place)
    curve = progress == 1.0 and not missing_scores(run, place)
    left = 0.0 if measured else run.measure_seconds
    if not again:
        left += expected_seconds(run) * (1 - progress)
        left += CURVE_SECONDS if tasks_of(run) and not curve else 0.0
    # A try has no suite: only its checkpoints are measured.
    found = ((run.suite, measured and not run.number), ("checkpoints", curve and not again))
    parts = [word for word, is_there in found if is_there]
    texts = (run.key, run.stage, f"{100 * progress:.0f} %", ", ".join(parts), f"{left / 60:.0f}")
    view.add_row(*(Text(text) for text in texts))
    return left


def _show_tries(declared: StudyDeclaration, row: str, place: Workspace) -> None:
    """The tries of a row with their scores, and whether the recipe has the best one."""
    from maskclip_bench.study import tuning

    found = tuning.tries(declared, row, place)
    scores = ["-" if each.score is None else f"{100 * each.score:.1f}" for each in found]
    state = {
        None: "not tuned yet",
        True: "the recipe has the best try",
        False: f"the recipe differs from the best try: maskclip-bench study settle {declared.name}",
    }[tuning.is_settled(declared, row, place)]
    console().print(f"tries of {row}: {', '.join(scores)}  ({state})", markup=False)


@study_app.command("run")
def run_study(
    study: StudyArgument,
    stage: StageOption = None,
    row: RowOption = None,
    seed: SeedOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=1, help="Pieces of work side by side; default: cores."),
    ] = None,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Do what is left of a study: worlds, tries, trainings, measurements. Interrupt it at any time.

    The tries come first, and the best of each method is written into the recipes before anything
    that is reported is trained. With --stage, --row or --seed only that part is done.

    For example:

        maskclip-bench study run demo_long

        maskclip-bench study run demo_long --row maskclip --seed 0
    """
    from maskclip_bench.cli.run_display import RunDisplay
    from maskclip_bench.study.declaration import load_study
    from maskclip_bench.study.engine import StudyEngine

    declared, place = load_study(study), Workspace.open(workspace)
    target = resolve_device(device)
    side_by_side = workers or (1 if target.type == "cuda" else default_num_threads())
    with RunDisplay(console(stderr=True)) as display:
        engine = StudyEngine(
            declared, place, device=str(target), num_workers=side_by_side, listener=display
        )
        outcome = engine.run(stages=stage or [], rows=row or [], seeds=seed or [])
    output = console()
    for key, reason in outcome.failed.items():
        output.print(f"failed: {key}: {reason}", markup=False)
    output.print(
        f"{len(outcome.done)} pieces done, {len(outcome.failed)} failed, "
        f"{len(outcome.skipped)} left out. Report: maskclip-bench study report {declared.name}"
    )
    if outcome.failed:
        raise typer.Exit(EXIT_FAILED)


@study_app.command("curve")
def measure_curve(
    study: StudyArgument,
    row: Annotated[str, typer.Argument(help="A row of the study.")],
    seed: Annotated[int, typer.Option("--seed", help="Of the run.")] = 0,
    number: Annotated[int, typer.Option("--try", help="A try of the row instead, from 1.")] = 0,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure the kept checkpoints of one run; `study run` does it for all.

    For example:

        maskclip-bench study curve demo_long maskclip --seed 0
    """
    from maskclip_bench.runtime import configure_threads
    from maskclip_bench.study import tuning
    from maskclip_bench.study.checkpoints import measure_checkpoints
    from maskclip_bench.study.declaration import load_study
    from maskclip_bench.study.runs import runs_of

    declared, place = load_study(study), Workspace.open(workspace)
    configure_threads()
    if number:
        found = [each.run for each in tuning.tries(declared, row, place)] if declared.tuning else []
        if number > len(found):
            raise ConfigError(f"{row} has {len(found)} tries; there is no try {number}.")
        run = found[number - 1]
    else:
        run = runs_of(declared, rows=[row], seeds=[seed])[0]
    curve = measure_checkpoints(run, place, device=resolve_device(device))
    for step, scores in curve.items():
        console().print(f"step {step}: {len(scores)} scores")


@study_app.command("settle")
def settle_study(study: StudyArgument, workspace: WorkspaceOption = None) -> None:
    """Write the best try of each method into the recipes, once all tries are measured."""
    from maskclip_bench.study import tuning
    from maskclip_bench.study.declaration import load_study

    changed = tuning.settle(load_study(study), Workspace.open(workspace))
    for path in changed:
        console().print(f"wrote {path}", markup=False)
    if not changed:
        console().print("The recipes have the settings of the best tries already.")


@study_app.command("report")
def report_study(
    study: StudyArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder laid out like `results/`.")
    ] = Path("results"),
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Where the figure goes (PNG).")
    ] = None,
    collect: Annotated[
        bool,
        typer.Option(
            "--collect/--no-collect",
            help="Take tables and records from the workspace first; else use those in --output.",
        ),
    ] = True,
    workspace: WorkspaceOption = None,
) -> None:
    """Write what is measured so far: records, tables, figure, and what the tests say.

    For example:

        maskclip-bench study report demo_long --figure docs/study.png

        maskclip-bench study report demo_long --no-collect
    """
    from maskclip_bench.study.collecting import collect as collect_study
    from maskclip_bench.study.declaration import load_study
    from maskclip_bench.study.reporting import write_report

    declared, view = load_study(study), console()
    if collect:
        for path in collect_study(declared, Workspace.open(workspace), output):
            view.print(f"wrote {path}", markup=False, style="dim")
    for path in write_report(declared, output, figure=figure):
        view.print(f"wrote {path}", markup=False)
