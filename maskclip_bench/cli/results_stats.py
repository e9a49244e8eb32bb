"""`maskclip-bench results stats`: ranks, ties, win rates, power and noise of a whole suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip_bench.cli.options import WorkspaceOption, add_line, console, plain_table
from maskclip_bench.cli.table import (
    JsonOption,
    RecordsOption,
    RowsOption,
    TasksOption,
    display_names,
)
from maskclip_bench.errors import ConfigError
from maskclip_bench.escaping import markup
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.results.suite_statistics import SuiteStatistics, TaskStatistics


def stats(
    backbone: RowsOption = None,
    task: TasksOption = None,
    as_json: JsonOption = False,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="Write the critical-difference figure: .png, .svg or .pdf."),
    ] = None,
    cost_figure: Annotated[
        Path | None,
        typer.Option(
            "--cost-figure", help="Write score against cost: of the runs here, or of --costs."
        ),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            "--cost",
            help="gpu_hours, images_seen or parameters; default: the first that is known of all "
            "rows.",
        ),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            "--costs",
            help="CSV: backbone, and gpu_hours, images_seen or parameters (the first is drawn).",
        ),
    ] = None,
    records: RecordsOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Rank the recorded rows over the tasks that all of them have.

    Mean ranks and win rates have intervals over the test images; ties are by the critical
    difference over the tasks (Nemenyi). For each task: ranks with intervals, the smallest
    difference that it can show in four of five cases, and how much of the noise comes from test
    images, drawn shots and training seeds.

    For example:

        maskclip-bench results stats -t "*/demo_objects" --figure ranks.svg --cost-figure cost.svg
    """
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.results.suite_statistics import suite_statistics
    from maskclip_bench.results.table_catalogue import choose_records

    store = RecordStore(records or Workspace.open(workspace).records)
    chosen = choose_records(store.all(), backbone or [], task or [])
    found = suite_statistics(chosen, store, names=display_names())
    if figure is not None:
        from maskclip_bench.results.suite_figures import draw_critical_difference

        draw_critical_difference(found, figure)
    if cost_figure is not None:
        _draw_costs(found, store, Workspace.open(workspace), cost_figure, cost, costs)
    if as_json:
        print(json.dumps(found.as_json(), indent=2, allow_nan=False))
        return
    _show(found)


def _draw_costs(
    found: SuiteStatistics,
    store: RecordStore,
    workspace: Workspace,
    path: Path,
    kind: str | None,
    costs: Path | None,
) -> None:
    """Score against the cost in a file, or against that of the runs in the workspace."""
    from maskclip_bench.report.costs import choose_costs, costs_of
    from maskclip_bench.report.selection import select
    from maskclip_bench.results.suite_figures import COST_LABELS, draw_costs, read_costs

    if kind is not None and kind not in COST_LABELS:
        raise ConfigError(f"--cost {kind!r} is not known. Use one of: {', '.join(COST_LABELS)}.")
    if costs is not None:
        chosen, known = read_costs(costs)
    else:
        rows = select(store, backbones=found.backbones).rows
        chosen, known = choose_costs(costs_of(rows, workspace), kind)
    free = draw_costs(found, known, path, cost=chosen)
    messages = console(stderr=True)
    messages.print(f"wrote {markup(path)}: score against {COST_LABELS[chosen]}", soft_wrap=True)
    if free:
        messages.print(f"Not drawn, as they cost nothing: {markup(', '.join(free))}.")


def _show(found: SuiteStatistics) -> None:
    output = console()
    view = plain_table(
        "row", "mean rank", "95 %", *(f"beats {n}" for n in range(1, len(found.rows) + 1))
    )
    for index, name in enumerate(found.rows):
        ends = f"{found.rank_low[index]:.2f} to {found.rank_high[index]:.2f}"
        wins = [
            "" if other == index else f"{100 * found.win_rates[index, other]:.0f} %"
            for other in range(len(found.rows))
        ]
        add_line(view, f"{index + 1} {name}", f"{found.mean_ranks[index]:.2f}", ends, *wins)
    output.print(view)
    ties = "; ".join(
        " = ".join(found.rows[row] for row in group) for group in found.ties if len(group) > 1
    )
    output.print(
        f"\nOver {len(found.tasks)} tasks. Ties (mean ranks closer than the critical difference, "
        f"{found.critical_difference:.2f}): {markup(ties) or 'none'}.\n",
        soft_wrap=True,
    )
    view = plain_table(
        "task", "ranks, 95 %", "shows, points", "noise of one run: images, shots, seeds"
    )
    for task in found.tasks:
        ranks = ", ".join(str(rank) for rank in task.ranks)
        shown = "" if task.smallest_difference is None else f"{100 * task.smallest_difference:.1f}"
        add_line(view, task.task, ranks, shown, _noise(task))
    output.print(view)
    output.print(
        "\nshows: smallest difference of two rows that is called clear in 4 of 5 cases, corrected "
        "for all pairs.",
        style="dim",
    )
    if found.left_out:
        output.print(f"Not of all rows, left out: {markup(', '.join(found.left_out))}.")


def _noise(task: TaskStatistics) -> str:
    """Standard deviations in points, the root mean square over the rows."""
    parts = []
    for source in ("samples", "shots", "seeds"):
        known = [getattr(split, source) for split in task.variance if split is not None]
        known = [value for value in known if value is not None]
        parts.append(f"{100 * (sum(known) / len(known)) ** 0.5:.2f}" if known else "-")
    return ", ".join(parts)
