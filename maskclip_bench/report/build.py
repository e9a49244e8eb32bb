"""Build the report's folder from records, and from whatever else of the run is on this machine.

index.html                     the page
cells/{row}/{task}.html        one page a cell
assets/, pictures/             style, script, pictures
data/                          everything the page shows, as JSON and CSV
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from maskclip_bench import storage
from maskclip_bench.errors import storage_error
from maskclip_bench.escaping import csv_cell
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.report import page
from maskclip_bench.report.cells import cell_page, cell_path, detail_of, outcomes_of
from maskclip_bench.report.comparisons import columns_of, pairs_of
from maskclip_bench.report.images import Gallery
from maskclip_bench.report.index_view import Parts, index_values
from maskclip_bench.report.looking import has_torch, make_pictures
from maskclip_bench.report.runs import read_runs
from maskclip_bench.report.selection import Selection, select
from maskclip_bench.report.state import INDEX, MARK, STATE, built_state, check_folder, state_of
from maskclip_bench.report.stored_pictures import copy_pictures
from maskclip_bench.report.tables import (
    declared_tables,
    tables_of_everything,
    write_tables,
)
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.table_model import Table
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.suite import SuiteDeclaration

logger = logging.getLogger(__name__)

HEADINGS = {"metrics": "Scores", "confusions": "Frequent confusions"}

Pictures = Literal["make", "keep"]
"""Run models for pictures that are not in the folder yet, or show those that are there."""


def build(
    folder: Path,
    *,
    records: Path,
    workspace: Workspace | None = None,
    suite: SuiteDeclaration | None = None,
    backbones: Sequence[str] = (),
    tasks: Sequence[str] = (),
    title: str | None = None,
    tables: Mapping[str, Table] | None = None,
    pictures: Pictures = "make",
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Path:
    """Write a report, or write it again.

    Everything but the pictures that need a model is made from records; torch is needed only for
    those, and only with `pictures="make"`.

    Args:
        folder: A new or empty folder, or that of a report.
        records: Folder of the records.
        workspace: Where logs, data and weights are; None = records alone.
        suite: Rows, columns and tables; None = everything recorded.
        backbones: Only these rows.
        tasks: Only these columns.
        title: Of the page.
        tables: The suite's tables by name, where the caller has filled them already.
        pictures: See `Pictures`.
        device: Where models run.
        progress: Told (stage, done, total) of anything long.

    Returns:
        The page, `index.html` in the folder.

    Raises:
        ConfigError: Nothing of it is recorded, or the folder holds something else.
        DataError: A record was written by a newer version.
        StorageError: The disk refused, or a record cannot be read.
    """
    store = RecordStore(records)
    selection = select(store, suite=suite, backbones=backbones, tasks=tasks, title=title)
    check_folder(folder)
    storage.remove_leftovers(folder, recursive=True)
    if pictures == "make" and workspace is not None and has_torch():
        make_pictures(selection, workspace, folder, device=device, progress=progress)
    state = state_of(selection, workspace, folder)
    if built_state(folder) == state:
        return folder / INDEX  # all that the page is made of is as it was
    _clear(folder)
    gallery = Gallery(selection.datasets, workspace, folder, progress)
    parts = Parts(folder, selection, store, gallery)
    parts.runs = read_runs(selection.rows, workspace) if workspace is not None else []
    parts.tables = declared_tables(selection, store, built=tables, progress=progress)
    _write_comparisons(parts, progress)
    parts.tables |= tables_of_everything(selection, store, parts.columns, parts.pairs)
    parts.files += write_tables(parts.tables, folder)
    _write_cells(parts, progress)
    _write_data(parts)
    page.copy_assets(folder)
    page.render(INDEX, folder / INDEX, **index_values(parts, has_workspace=workspace is not None))
    storage.write_json(folder / STATE, state)
    return folder / INDEX


def make_sheets(
    datasets: Mapping[str, TaskDeclaration],
    workspace: Workspace,
    folder: Path,
    *,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Make the sheets of small pictures that a report will ask for, before there is one.

    Args:
        datasets: Declarations by name.
        workspace: Where their files are.
        folder: Of the report; what is there already is not made again.
        between: Called before each image; what it raises ends this.

    Raises:
        ConfigError: The folder holds something else.
        StorageError: The disk refused.
    """
    check_folder(folder)
    gallery = Gallery(dict(datasets), workspace, folder, lambda *told: between())
    for name in gallery.datasets:
        between()
        gallery.sheet(name)


def _clear(folder: Path) -> None:
    """Make the folder, or clear of it what is written again; pictures and tests are kept.

    Raises:
        StorageError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error
    (folder / STATE).unlink(missing_ok=True)
    for name in ("cells", "data/outcomes", "data/records", "pictures/dense"):
        shutil.rmtree(folder / name, ignore_errors=True)


# --- comparisons ---------------------------------------------------------------------------------


def _write_comparisons(parts: Parts, progress: Progress) -> None:
    """Tests of all pairs, outcomes of each column, and the script that the page reads."""
    selection, folder = parts.selection, parts.folder
    parts.columns = columns_of(selection)
    parts.pairs = pairs_of(selection, parts.columns, parts.store, folder, progress=progress)
    for index, column in enumerate(parts.columns):
        column["detail"] = None
        detail = detail_of(column, selection, parts.store, parts.gallery)
        if detail is not None and len(detail["rows"]) > 1:
            column["detail"] = f"data/outcomes/{index}.js"
            page.write_script(
                folder / column["detail"], f"window.maskclipReport.details[{index}]", detail
            )
        progress("outcomes", index + 1, len(parts.columns))
    values = {
        row.backbone: [_mean(selection, row.backbone, column) for column in parts.columns]
        for row in selection.rows
    }
    page.write_script(
        folder / MARK,
        "window.maskclipReport",
        {
            "rows": [{"backbone": r.backbone, "label": r.label} for r in selection.rows],
            "columns": parts.columns,
            "pairs": parts.pairs,
            "values": values,
            "details": {},
            "baseline": selection.baseline,
            "start": _start(selection),
            "several_seeds": any(len(row.seeds) > 1 for row in selection.rows),
        },
    )


def _start(selection: Selection) -> list[str] | None:
    """The two rows that the page compares first: the last declared method and the baseline."""
    methods = [row for row in selection.rows if row.declaration and row.declaration.method]
    named = [row for row in methods if row.declaration and row.declaration.method == "MaskCLIP"]
    others = [row for row in [*named, *selection.rows] if row.backbone != selection.baseline]
    if selection.baseline is None or not others:
        return None
    return [others[0].backbone, selection.baseline]


def _mean(selection: Selection, backbone: str, column: dict[str, Any]) -> float | None:
    values = [
        record.metrics[column["metric"]].value
        for record in selection.ok(backbone, column["task"]).values()
        if column["metric"] in record.metrics
    ]
    return sum(values) / len(values) if values else None


# --- cells ---------------------------------------------------------------------------------------


def _write_cells(parts: Parts, progress: Progress) -> None:
    """One page a cell, and a copy of its record."""
    selection = parts.selection
    records = selection.all()
    for done, record in enumerate(records):
        outcomes = outcomes_of(parts.store, record)
        cell = cell_page(record, selection, outcomes, parts.gallery)
        record_file = (
            f"data/records/{record.row_id}/{record.cell.protocol}__{record.cell.dataset}.json"
        )
        storage.write_json(parts.folder / record_file, record.model_dump(mode="json"))
        page.render(
            "cell.html",
            parts.folder / cell_path(record),
            title=f"{cell.label}: {cell.title}",
            up="../../",
            page=cell,
            charts=[
                {
                    "heading": HEADINGS.get(chart.key, chart.key.replace("-", " ").capitalize()),
                    "caption": chart.caption,
                    "svg": page.svg(chart.drawing),
                }
                for chart in cell.charts
            ],
            beside=copy_pictures(record, parts.gallery.workspace, parts.folder),
            others=_others(record, selection),
            traceback=record.error.traceback if record.error else "",
            record_file=record_file,
        )
        progress("pages of cells", done + 1, len(records))


def _others(record: Record, selection: Selection) -> list[dict[str, str]]:
    """The same task of the other rows and seeds."""
    links = []
    for row in selection.rows:
        for seed, other in sorted(selection.records.get((row.backbone, record.task), {}).items()):
            if other is not record:
                text = row.label if len(row.seeds) == 1 else f"{row.label}, seed {seed}"
                links.append({"href": cell_path(other), "text": text})
    return links


# --- data ----------------------------------------------------------------------------------------


def _write_data(parts: Parts) -> None:
    """Scores, comparisons and curves as CSV and JSON."""
    scores = [
        {
            "row": csv_cell(record.row_id),
            "task": csv_cell(record.task),
            "status": record.status,
            "metric": csv_cell(name),
            "value": metric.value,
            "low": metric.low,
            "high": metric.high,
            "chance": metric.chance_level,
            "num_samples": metric.num_samples,
            "num_groups": metric.num_groups,
            "preset": csv_cell(record.preset or ""),
            "seconds": record.seconds,
        }
        for record in parts.selection.all()
        for name, metric in record.metrics.items()
    ]
    tests = [
        {
            "first": csv_cell(pair.partition("|")[0]),
            "second": csv_cell(pair.partition("|")[2]),
            "task": csv_cell(column["task"]),
            "metric": csv_cell(column["metric"]),
            **test,
        }
        for pair, found in parts.pairs.items()
        for column, test in zip(parts.columns, found, strict=True)
        if test is not None
    ]
    points = [
        {"row": csv_cell(run.row.backbone), "seed": run.seed, "step": step, "key": key, "value": v}
        for run in parts.runs
        for key, values in run.logged.items()
        for step, v in zip(run.steps, values, strict=True)
    ]
    for name, lines in (("scores", scores), ("pairs", tests), ("curves", points)):
        if not lines:
            continue
        frame = pd.DataFrame(lines)
        storage.write_text(
            parts.folder / f"data/{name}.csv", frame.to_csv(index=False, lineterminator="\n")
        )
        parts.files.append(f"data/{name}.csv")
        if name == "scores":
            plain = frame.astype(object).where(frame.notna(), None)
            storage.write_json(parts.folder / "data/scores.json", plain.to_dict("records"))
            parts.files.append("data/scores.json")
