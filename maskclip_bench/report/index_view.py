"""The page's first sheet: what `templates/index.html` asks for, from the gathered parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskclip_bench import __version__
from maskclip_bench.report import page
from maskclip_bench.report.cells import cell_path
from maskclip_bench.report.images import Gallery
from maskclip_bench.report.looking import RETRIEVED, SEEN, kept_pictures
from maskclip_bench.report.runs import Run
from maskclip_bench.report.runs_view import cost_charts, curve_charts, glance_charts
from maskclip_bench.report.seen_view import retrieval_view, seen_view
from maskclip_bench.report.selection import Selection
from maskclip_bench.report.tables import sentences, view_of
from maskclip_bench.results.records import Record, RecordStore, row_id
from maskclip_bench.results.table_catalogue import metric_label, protocol_title
from maskclip_bench.results.table_model import Table
from maskclip_bench.runtime import utc_now


@dataclass
class Parts:
    """What is gathered on the way to the page.

    Attributes:
        folder: Of the report.
        selection: Rows, tasks, records.
        store: The records.
        gallery: Images of the data sets.
        runs: Pretraining runs with a log here.
        tables: By name.
        columns: Of the comparison.
        pairs: Tests of every two rows.
        files: Of data, below the folder.
    """

    folder: Path
    selection: Selection
    store: RecordStore
    gallery: Gallery
    runs: list[Run] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    columns: list[dict[str, Any]] = field(default_factory=list)
    pairs: dict[str, list[dict[str, Any] | None]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def index_values(parts: Parts, *, has_workspace: bool) -> dict[str, Any]:
    """Everything that `index.html` asks for."""
    selection = parts.selection
    seen_list = kept_pictures(selection, parts.folder, SEEN)
    retrieved = kept_pictures(selection, parts.folder, RETRIEVED)
    labels = {row_id(row.backbone, row.seeds[0]): row.label for row in selection.rows}
    seen = seen_view(seen_list, _display(selection, seen_list))
    retrieval = retrieval_view(retrieved, labels, _display(selection, retrieved))
    curves = curve_charts(parts.runs)
    cost, cost_note = cost_charts(parts.runs, selection, parts.columns)
    summary, intro = _summary(parts.tables, selection)
    glance = glance_charts(next(iter(parts.tables.values()), None), selection, parts.columns)
    several = len(selection.rows) > 1
    sections = [
        ("summary", "In short", True),
        ("tables", "Tables", bool(parts.tables)),
        ("compare", "Compare", several),
        ("training", "Training", bool(curves)),
        ("cost", "Cost", bool(cost)),
        ("seen", "What a model sees", seen is not None),
        ("retrieval", "Retrieval", retrieval is not None),
        ("cells", "Every cell", True),
        ("made", "How it was made", True),
    ]
    ran = {run.row.backbone for run in parts.runs}
    return {
        "title": selection.title,
        "up": "",
        "counts": _counts(selection),
        "demo": any(record.cell.world == "demo" for record in selection.all()),
        "sections": [(name, text) for name, text, shown in sections if shown],
        "summary": summary,
        "summary_intro": intro,
        "glance": [page.svg(drawing) for drawing in glance],
        "failed": _failed(selection),
        "tables": [view_of(name, table, selection) for name, table in parts.tables.items()],
        "rows": selection.rows,
        "curve_rows": [
            {"label": row.label, "marker": page.legend_marker(row.series)}
            for row in selection.rows
            if row.backbone in ran
        ],
        "curves": [
            (heading, note, [page.svg(drawing) for drawing in drawings])
            for heading, note, drawings in curves
        ],
        "cost": [page.svg(drawing) for drawing in cost],
        "cost_note": cost_note,
        "seen": seen,
        "retrieval": retrieval,
        "cells": _cell_lines(selection),
        "made": _made(selection, has_workspace, seen is not None),
        "files": parts.files,
        "version": __version__,
    }


def _display(selection: Selection, found: dict[str, Any] | None) -> str:
    name = str((found or {}).get("data_set", ""))
    task = selection.datasets.get(name)
    return task.display_name if task else name


def _counts(selection: Selection) -> str:
    records = selection.all()
    seeds = sorted({seed for row in selection.rows for seed in row.seeds})
    parts = [
        _plural(len(selection.rows), "row"),
        _plural(len(selection.tasks), "task"),
        _plural(sum(record.status == "ok" for record in records), "measured cell"),
    ]
    if len(seeds) > 1:
        parts.append(f"up to {len(seeds)} training seeds a row")
    return ", ".join(parts) + f". {utc_now()[:10]}."


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _summary(tables: dict[str, Table], selection: Selection) -> tuple[list[tuple[str, str]], str]:
    """Sentences of the first table that compares anything."""
    for table in tables.values():
        found = sentences(table, selection)
        if not found:
            continue
        base = next(row.name for row in table.rows if row.backbone == table.baseline)
        parts = [sentence.partition(": ") for sentence in found]
        return [(name, text) for name, _, text in parts], f"{table.title}, compared with {base}:"
    return [], ""


def _failed(selection: Selection) -> list[dict[str, str]]:
    return [
        {"name": f"{record.row_id} × {record.task}", "href": cell_path(record)}
        for record in selection.all()
        if record.status == "failed"
    ]


def _cell_lines(selection: Selection) -> list[dict[str, Any]]:
    lines = []
    for task in selection.tasks:
        of_task = [record for record in selection.all() if record.task == task]
        dataset = selection.datasets.get(of_task[0].cell.dataset)
        named = [record for record in of_task if record.protocol_title] or of_task
        links = []
        for row in selection.rows:
            found = selection.records.get((row.backbone, task), {})
            links.append([_link(record, len(row.seeds) > 1) for _, record in sorted(found.items())])
        lines.append(
            {
                "title": protocol_title(named[0]),
                "data_set": dataset.display_name if dataset else of_task[0].cell.dataset,
                "rows": links,
            }
        )
    return lines


def _link(record: Record, with_seed: bool) -> dict[str, Any]:
    failed = record.status != "ok"
    text = "failed" if failed else f"{100 * record.primary.value:.1f}"
    if with_seed:
        text = f"{text} (seed {record.cell.seed})" if failed else text
    label = "" if failed else metric_label(record, record.primary_metric or "")
    return {"href": cell_path(record), "text": text, "failed": failed, "hint": label}


def _made(selection: Selection, has_workspace: bool, has_pictures: bool) -> list[str]:
    """Sentences on where the numbers are from."""
    ok = [record for record in selection.all() if record.status == "ok"]
    commits = sorted({str(r.provenance.get("git_commit") or "unknown")[:12] for r in ok})
    times = sorted(str(r.provenance["time"])[:10] for r in ok if r.provenance.get("time"))
    machines = sorted({_machine(record) for record in ok})
    lines = [f"Measured {' to '.join(dict.fromkeys([times[0], times[-1]]))}."] if times else []
    lines += [
        f"Code: {', '.join(commits)}.",
        f"Machines: {'; '.join(machines)}.",
        "Every record is sealed; a damaged one is not shown. The page is made from records"
        + (", logs and data of the workspace." if has_workspace else " alone."),
    ]
    if not has_pictures:
        lines.append(
            "What a model sees is not shown: that needs torch, the rows' weights and the data. Run "
            "the same command where they are."
        )
    return lines


def _machine(record: Record) -> str:
    hardware = record.provenance.get("hardware")
    if not isinstance(hardware, dict):
        return "unknown"
    parts = [hardware.get("gpu") or hardware.get("device"), hardware.get("machine")]
    text = ", ".join(str(part) for part in parts if part)
    return f"{text}, {hardware['cores']} cores" if "cores" in hardware else text
