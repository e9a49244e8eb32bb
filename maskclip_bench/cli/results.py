"""`maskclip-bench results ...`: what is recorded; sets of records compared, merged, exported."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from maskclip_bench.cli.options import WorkspaceOption, add_line, console, plain_table
from maskclip_bench.cli.results_stats import stats
from maskclip_bench.cli.table import JsonOption, RecordsOption, RowsOption, TasksOption
from maskclip_bench.errors import EXIT_FAILED, ConfigError, unknown_name
from maskclip_bench.escaping import markup, one_line
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from rich.table import Table

    from maskclip_bench.results.record_model import Record
    from maskclip_bench.results.record_sets import Difference
    from maskclip_bench.results.records import RecordStore

results_app = typer.Typer(
    help="What is recorded: list, show, compare two workspaces, merge, export. Needs no torch.",
    no_args_is_help=True,
)

results_app.command("stats")(stats)

Set = Annotated[
    Path, typer.Argument(help="A workspace, or a folder of records.", exists=True, file_okay=False)
]


@results_app.command("ls")
def list_records(
    backbone: RowsOption = None,
    task: TasksOption = None,
    as_json: JsonOption = False,
    records: RecordsOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """List the recorded cells: value and interval of the primary metric, preset, limit, time."""
    found = _chosen(_store(records, workspace), backbone, task)
    if as_json:
        from maskclip_bench.results.record_sets import metric_table

        table = metric_table(found)
        table = table[table["is_primary"].fillna(value=True).astype(bool)]
        print(table.to_json(orient="records", indent=2))
        return
    view = plain_table("row", "task", "score, %", "metric", "preset", "limit", "measured")
    for record in found:
        score = "failed"
        if record.status == "ok":
            metric = record.primary
            width = "" if metric.half_width is None else f" ±{100 * metric.half_width:.1f}"
            score = f"{100 * metric.value:.1f}{width}"
        limit = record.budget.get("limit", "")
        time = str(record.provenance.get("time", ""))[:10]
        metric_name, preset = record.primary_metric or "", record.preset or ""
        add_line(view, record.row_id, record.task, score, metric_name, preset, limit, time)
    output = console()
    output.print(view)
    output.print(f"\n{len(found)} records. One in full: maskclip-bench results show ROW/TASK")


@results_app.command("show")
def show_cell(
    cell: Annotated[str, typer.Argument(help="row/protocol/dataset, as `results ls` has it.")],
    as_json: JsonOption = False,
    records: RecordsOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Show one record: every metric, what it was measured from, with what, and when."""
    from maskclip_bench.backbones.resolve import cell_name as recorded_name
    from maskclip_bench.results.record_sets import cell_name, show_record

    store = _store(records, workspace)
    row, _, task = recorded_name(cell).partition("/")
    protocol, slash, dataset = task.partition("/")
    record = store.load(row, protocol, dataset) if slash else None
    if record is None:
        known = [cell_name(other) for other in store.all()]
        raise unknown_name(
            "record", cell, known, remedy="List them with: maskclip-bench results ls"
        )
    if as_json:
        print(json.dumps(show_record(record), indent=2, allow_nan=False))
    else:
        _show(record)


def _show(record: Record) -> None:
    output = console()
    output.print(f"[bold]{markup(record.row_id)}[/]  {markup(record.task)}  {record.status}")
    if record.error is not None:
        output.print(Text(one_line(f"{record.error.type}: {record.error.message}"), style="red"))
    view = plain_table("metric", "value, %", "95 % interval", "chance", "samples", "groups", "how")
    for name, metric in record.metrics.items():
        spread = (
            ""
            if metric.low is None or metric.high is None
            else f"{100 * metric.low:.1f} to {100 * metric.high:.1f}"
        )
        chance = "" if metric.chance_level is None else f"{100 * metric.chance_level:.1f}"
        mark = " (primary)" if name == record.primary_metric else ""
        counts = (metric.num_samples or "", metric.num_groups or "")
        value = f"{100 * metric.value:.2f}"
        add_line(view, f"{name}{mark}", value, spread, chance, *counts, metric.interval or "")
    output.print(view)
    values = record.model_dump(mode="json", exclude={"metrics", "error", "table_columns"})
    for key in ("preset", "preset_version", "budget", "seconds", "fingerprints", "details"):
        if values[key]:
            output.print(Text(f"{key}: {one_line(json.dumps(values[key]))}"), soft_wrap=True)
    for key, value in values["provenance"].items():
        output.print(Text(one_line(f"{key}: {json.dumps(value)}"), style="dim"), soft_wrap=True)


@results_app.command("diff")
def diff(
    first: Set,
    second: Set,
    all_cells: Annotated[
        bool, typer.Option("--all", help="Name the cells that are the same, too.")
    ] = False,
    both: Annotated[bool, typer.Option("--both", help="Only cells that both have.")] = False,
    within: Annotated[
        float | None,
        typer.Option(min=0, help="Points by which a metric may differ: such cells agree."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two workspaces cell by cell; exit code 1 where they differ.

    Cells that were trained on another kind of processor differ: it rounds otherwise, and a training
    then ends as one of another seed would (docs/trust.md).

    For example:

        maskclip-bench results diff workspace other_machine/workspace

        maskclip-bench results diff workspace results --both --within 5
    """
    from maskclip_bench.results.record_sets import differences

    found = [item for item in differences(_set(first), _set(second)) if item.of_both or not both]
    others = [item for item in found if item.change != "same"]
    differing = [item for item in others if within is None or not item.is_within(within / 100)]
    shown = found if all_cells else differing
    if as_json:
        print(json.dumps([_plain(item) for item in shown], indent=2, allow_nan=False))
    else:
        output = console()
        if shown:
            output.print(_differences_view(shown))
        agreeing = len(others) - len(differing)
        agree = f"{agreeing} agree within {within:g} points, " if within is not None else ""
        num_same = len(found) - len(others)
        output.print(f"{num_same} cells are the same, {agree}{len(differing)} differ.")
        apart = [item for item in found if item.largest is not None]
        if apart and (most := max(apart, key=lambda item: item.largest or 0.0)).largest:
            output.print(
                f"Furthest apart, {_points(most.largest)} points: {most.metric} of "
                f"{most.row_id}/{most.task}.",
                markup=False,
                soft_wrap=True,
            )
    if differing:
        raise typer.Exit(EXIT_FAILED)


def _plain(item: Difference) -> dict[str, Any]:
    """A difference as JSON; a metric that only one has makes no number."""
    values = asdict(item)
    if item.largest is not None and not math.isfinite(item.largest):
        values["largest"] = None
    return values


def _points(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"


def _differences_view(items: Sequence[Difference]) -> Table:
    view = plain_table(
        *("row", "task", "differs in", "first, %", "second, %"),
        *("most, points", "measured from other"),
    )
    for item in items:
        numbers = [_points(value) for value in (item.first, item.second, item.largest)]
        add_line(view, item.row_id, item.task, item.change, *numbers, ", ".join(item.parts))
    return view


@results_app.command("merge")
def merge_sets(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Workspaces, or folders of records.", exists=True, file_okay=False),
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Where both have a score, take the source's.")
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Copy records of other workspaces into this one, verified; exit code 1 if some were not taken.

    A score takes the place of a failed record, never the other way round. Where both have a score
    and it is not the same measurement, this workspace's stands, unless --replace.

    For example:

        maskclip-bench results merge other_machine/workspace --workspace workspace
    """
    from maskclip_bench.results.record_sets import merge

    target = _store(None, workspace)
    output = console()
    kept = 0
    for source in sources:
        done = merge(_set(source), target, replace=replace)
        output.print(
            f"{markup(source)}: {len(done.copied)} copied, {len(done.replaced)} replaced, "
            f"{len(done.same)} were here already, {len(done.kept)} not taken",
            soft_wrap=True,
        )
        for name in done.kept:
            output.print(f"  not taken, another record stands here: {markup(name)}", soft_wrap=True)
        kept += len(done.kept)
    if kept:
        output.print("What differs: maskclip-bench results diff. To take them: --replace")
        raise typer.Exit(EXIT_FAILED)


@results_app.command("export")
def export_records(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file: .csv, .json or .parquet.")
    ],
    backbone: RowsOption = None,
    task: TasksOption = None,
    records: RecordsOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write one line a metric into a file: values, intervals, presets, fingerprints.

    For example:

        maskclip-bench results export -o numbers.csv -t "knn/*"
    """
    from maskclip_bench.results.record_sets import export_metrics

    found = _chosen(_store(records, workspace), backbone, task)
    path = export_metrics(found, output)
    console().print(f"{len(found)} records in {markup(path)}", soft_wrap=True)


def _store(records: Path | None, workspace: Path | None) -> RecordStore:
    from maskclip_bench.results.records import RecordStore

    return RecordStore(records or Workspace.open(workspace).records)


def _set(folder: Path) -> RecordStore:
    """The records of a workspace, or of a folder that holds nothing else.

    Raises:
        ConfigError: There are none.
    """
    from maskclip_bench.results.records import RecordStore

    inside = folder / "records"
    store = RecordStore(inside if inside.is_dir() else folder)
    if not store.paths():
        raise ConfigError(f"{folder} holds no record. Name a workspace, or its folder records.")
    return store


def _chosen(
    store: RecordStore, backbones: list[str] | None, tasks: list[str] | None
) -> list[Record]:
    from maskclip_bench.results.table_catalogue import choose_records

    return choose_records(store.all(), backbones or [], tasks or [])
