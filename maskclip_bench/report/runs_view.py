"""Curves and costs of pretraining runs as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskclip_bench.report.charts import Curve, Estimate, curves, intervals, scatter
from maskclip_bench.report.drawing import Drawing
from maskclip_bench.report.runs import Run, terms
from maskclip_bench.report.selection import Selection
from maskclip_bench.results.table_model import Table

HEADINGS = {
    "losses": (
        "Loss terms",
        "Every term as it enters the total, that is with its weight. Totals have other terms in "
        "each method and are not comparable between them; terms of one name are.",
    ),
    "health": (
        "Health of the parts",
        "What the online quantizer, the momentum teacher and the temperature do. A quantizer that "
        "uses few codewords, or a teacher that does not move, shows here before any score.",
    ),
    "speed": (
        "Speed and memory",
        "As logged while training; other work on the same machine shows here.",
    ),
}
TITLES = {
    "loss": "total loss",
    "mlm_loss": "masked language loss",
    "ema_momentum": "momentum of the teacher",
    "memory_gib": "memory, GiB",
    "images_per_second": "images a second",
    "data_wait_fraction": "share of the time waiting for data",
    "num_nonfinite_steps": "steps that were not finite",
}
"""Of keys whose words say too little; others are titled by their words."""
MAX_COST_CHARTS = 8
MAX_GLANCE = 8


def curve_charts(runs: Sequence[Run]) -> list[tuple[str, str, list[Drawing]]]:
    """(heading, note, charts) for losses, health and speed; kinds without a key are left out."""
    found = []
    for kind, keys in terms(runs).items():
        drawings = [_curve_chart(key, runs) for key in keys]
        if drawings:
            heading, note = HEADINGS[kind]
            found.append((heading, note, drawings))
    return found


def _curve_chart(key: str, runs: Sequence[Run]) -> Drawing:
    lines = [
        Curve(run.row.label, run.steps, run.logged[key], run.row.series)
        for run in runs
        if key in run.logged
    ]
    title = TITLES.get(key, key.replace("_", " ").replace("/", ", "))
    return curves(title, lines, x_label="step")


def cost_charts(
    runs: Sequence[Run], selection: Selection, columns: Sequence[Mapping[str, Any]]
) -> tuple[list[Drawing], str]:
    """Scores over the cost of pretraining, one chart a column; and what the cost is.

    The cost is time where every run logged its speed, else image-text pairs. Columns without at
    least two such rows are left out.
    """
    by_time = bool(runs) and all(run.seconds is not None for run in runs)
    drawings: list[Drawing] = []
    for column in columns:
        points = []
        for run in runs:
            cost = _minutes(run) if by_time else run.num_pairs
            estimate = _estimate(run, selection, column)
            if cost is not None and estimate is not None:
                points.append((float(cost), estimate))
        if len(points) >= 2 and len(drawings) < MAX_COST_CHARTS:
            title = f"{column['group']}, {column['data_set']} ({column['label']})"
            label = "minutes of training" if by_time else "image-text pairs seen"
            drawings.append(scatter(title, points, x_label=label, width=360, height=230))
    what = (
        "Time in training steps on the machine that trained, from the logged speed; rows that "
        "trained on different or busy machines are not comparable."
        if by_time
        else "Image-text pairs seen in pretraining, by the last logged step."
    )
    return drawings, f"{what} Line: 95 % interval, or one standard deviation over seeds."


def glance_charts(
    table: Table | None, selection: Selection, columns: Sequence[Mapping[str, Any]]
) -> list[Drawing]:
    """A small chart for each of the first columns of a table: the rows' scores with intervals."""
    if table is None:
        return []
    chances = {(column["task"], column["metric"]): column["chance"] for column in columns}
    drawings: list[Drawing] = []
    for index, column in enumerate(table.columns):
        estimates = []
        for row in table.rows:
            cell = row.cells[index]
            if cell.value is None or row.backbone is None:
                continue
            half = cell.half_width
            low = None if half is None else max(0.0, cell.value - half)
            high = None if half is None else min(1.0, cell.value + half)
            chance = chances.get((column.task, column.metric))
            series = selection.row(row.backbone).series if selection.has(row.backbone) else 0
            estimates.append(Estimate(row.name, cell.value, low, high, chance, series))
        if len(estimates) > 1 and len(drawings) < MAX_GLANCE:
            drawings.append(intervals(column.one_line, estimates, width=300, small=True))
    return drawings


def _minutes(run: Run) -> float | None:
    return None if run.seconds is None else run.seconds / 60


def _estimate(run: Run, selection: Selection, column: Mapping[str, Any]) -> Estimate | None:
    metrics = [
        record.metrics[column["metric"]]
        for record in selection.ok(run.row.backbone, column["task"]).values()
        if column["metric"] in record.metrics
    ]
    if not metrics:
        return None
    if len(metrics) == 1:
        only = metrics[0]
        return Estimate(run.row.label, only.value, only.low, only.high, None, run.row.series)
    values = [metric.value for metric in metrics]
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return Estimate(
        run.row.label, mean, max(0.0, mean - spread), min(1.0, mean + spread), None, run.row.series
    )
