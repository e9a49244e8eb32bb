"""The charts of one cell, by what its record and outcomes hold; every protocol has at least one.

| what is there | chart |
| --- | --- |
| metrics | a dot and an interval each, with guessing |
| metrics of one name with several numbers (k, shots, recall at k) | a curve |
| a truth and a prediction for each sample | accuracy of the classes, confusion |
| pixels or objects by class | the ratio of the classes |
| detections with hits | precision over recall |
| a confidence for each prediction | calibration |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from maskclip_bench.report import charts
from maskclip_bench.report.charts import Curve, Estimate
from maskclip_bench.report.drawing import Drawing
from maskclip_bench.results.outcome_columns import ratio_column_names
from maskclip_bench.results.records import Record
from maskclip_bench.results.table_catalogue import metric_label

Floats = NDArray[np.float64]

CONFIDENCE = "confidence"
"""Column of outcomes with the score of the prediction, 0 to 1."""
NUM_CONFUSIONS = 15
MAX_CONFUSED = 400
"""Classes up to which a confusion matrix is drawn."""

_FAMILY = re.compile(r"^(?P<name>.*?)(?P<mark>[@_]k?)(?P<number>\d+)(?P<rest>_shots?)?$")


@dataclass(frozen=True)
class CellChart:
    """A chart of a cell.

    Attributes:
        key: Part of a file's name.
        caption: What it shows, in a sentence.
        drawing: The chart.
    """

    key: str
    caption: str
    drawing: Drawing


def cell_charts(
    record: Record,
    outcomes: pd.DataFrame | None,
    names: Sequence[str] | None,
    *,
    series: int = 0,
) -> list[CellChart]:
    """All charts of an ok record.

    Args:
        record: The cell.
        outcomes: Its outcomes; None where there are none.
        names: Names of the classes by index; None = numbers.
        series: Place of its row among the rows.
    """
    found = [_metrics_chart(record, series), *_families(record, series)]
    if outcomes is None:
        return found
    if {"label", "prediction"} <= set(outcomes.columns):
        found += _predictions(record, outcomes, names, series)
    found += _ratios(record, outcomes, names, series)
    found += _detections(outcomes)
    if CONFIDENCE in outcomes.columns and "prediction" in outcomes.columns:
        found += _calibration(outcomes)
    return found


def _metrics_chart(record: Record, series: int) -> CellChart:
    estimates = [
        Estimate(metric_label(record, name), m.value, m.low, m.high, m.chance_level, series)
        for name, m in record.metrics.items()
    ]
    drawing = charts.intervals(f"Metrics of {record.task}", estimates)
    caption = "All metrics with their 95 % intervals; dashed: guessing."
    return CellChart("metrics", caption, drawing)


def _families(record: Record, series: int) -> list[CellChart]:
    """A curve for each name that several numbers share."""
    families: dict[tuple[str, str], dict[int, float]] = {}
    for name, metric in record.metrics.items():
        match = _FAMILY.match(name)
        if match is not None:
            key = (match["name"], f"{match['mark']}{'shots' if match['rest'] else ''}")
            families.setdefault(key, {})[int(match["number"])] = metric.value
    found = []
    for (name, mark), values in families.items():
        if len(values) < 3:
            continue
        numbers = sorted(values)
        label = "shots a class" if mark.endswith("shots") else "k"
        words = name.replace("_", " ")
        drawing = charts.curves(
            words,
            [Curve(words, numbers, [values[n] for n in numbers], series)],
            x_label=label,
            percent=True,
            marked=True,
            log_x=numbers[0] > 0,
        )
        chart = f"curve-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
        found.append(CellChart(chart, f"{words.capitalize()} over {label}, in percent.", drawing))
    return found


def _predictions(
    record: Record, outcomes: pd.DataFrame, names: Sequence[str] | None, series: int
) -> list[CellChart]:
    known = outcomes[["label", "prediction"]].dropna().astype(int)
    if known.empty or (known < 0).any(axis=None):
        return []
    number = max(int(known.to_numpy().max()) + 1, len(names or ()))
    words = class_words(names, number)
    counts = np.zeros((number, number), dtype=np.int64)
    np.add.at(counts, (known["label"].to_numpy(), known["prediction"].to_numpy()), 1)
    totals = counts.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(totals > 0, np.diag(counts) / totals, np.nan)
    task = record.task
    found = [
        CellChart(
            "classes",
            "Share of each class's images that are right, in percent.",
            charts.class_bars(f"Accuracy by class, {task}", words, list(recall), series=series),
        )
    ]
    wrong = counts / np.maximum(totals[:, None], 1)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS]
    pairs = [(int(i) // number, int(i) % number) for i in order if wrong.flat[i] > 0]
    if pairs:
        found.append(
            CellChart(
                "confusions",
                "The most frequent confusions, truth → what was said, in percent of the truth.",
                charts.class_bars(
                    f"Most frequent confusions, {task}",
                    [f"{words[a]} → {words[b]}" for a, b in pairs],
                    [float(wrong[a, b]) for a, b in pairs],
                    series=series,
                    name_length=40,
                ),
            )
        )
    if number <= MAX_CONFUSED:
        shown = np.flatnonzero(totals > 0) if (totals == 0).any() else np.arange(number)
        part = counts[np.ix_(shown, shown)]
        found.append(
            CellChart(
                "confusion",
                "Rows: the truth; columns: what was said. Blue: right, vermilion: wrong.",
                charts.confusion(f"Confusion of classes, {task}", part, [words[i] for i in shown]),
            )
        )
    return found


def _ratios(
    record: Record, outcomes: pd.DataFrame, names: Sequence[str] | None, series: int
) -> list[CellChart]:
    """Bars of the classes for the ratio of the most classes among the shown metrics."""
    best: tuple[int, str] | None = None
    for name, metric in record.metrics.items():
        columns = ratio_column_names(name)
        if metric.statistic != "mean_ratio" or not set(columns) <= set(outcomes.columns):
            continue
        known = outcomes[columns[0]].dropna()
        width = len(known.iloc[0]) if len(known) else 0
        if width > 1 and (best is None or width > best[0]):
            best = (width, name)
    if best is None:
        return []
    _, name = best
    values = class_ratios(outcomes, name)
    words = _ratio_words(record, names, len(values))
    label = metric_label(record, name)
    title = f"{label} by class, {record.task}"
    drawing = charts.class_bars(title, words, list(values), series=series)
    return [CellChart("classes", f"{label} of each class that occurs, in percent.", drawing)]


def class_ratios(outcomes: pd.DataFrame, metric: str) -> Floats:
    """Sum of numerators / sum of denominators of each class [C]; NaN where nothing was counted."""
    top, bottom = (
        np.stack([np.asarray(v) for v in outcomes[column].dropna()]).sum(axis=0).astype(float)
        for column in ratio_column_names(metric)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        values: Floats = np.where(bottom > 0, top / bottom, np.nan)
    return values


def _ratio_words(record: Record, names: Sequence[str] | None, number: int) -> list[str]:
    if names is not None and len(names) == number:
        return list(names)
    listed = record.details.get("class_iou")
    if isinstance(listed, dict) and len(listed) == number:
        return [str(name) for name in listed]
    return class_words(None, number)


def class_words(names: Sequence[str] | None, number: int) -> list[str]:
    """A name for each of `number` classes; numbers where there is none."""
    known = list(names or [])[:number]
    return known + [f"class {index}" for index in range(len(known), number)]


def _detections(outcomes: pd.DataFrame) -> list[CellChart]:
    """Precision over recall at IoU 0.5, of boxes and of masks, all classes together."""
    lines = []
    for series, (prefix, label) in enumerate((("box_ap", "boxes"), ("mask_ap", "masks"))):
        columns = [f"{prefix}.{part}" for part in ("scores", "hits", "ignored", "objects")]
        if not set(columns) <= set(outcomes.columns):
            continue
        rows = outcomes[columns].dropna()
        if rows.empty:
            continue
        scores, hits, ignored = (np.concatenate([*rows[c]]) for c in columns[:3])
        objects = float(np.stack([*rows[columns[3]]]).sum())
        kept = (ignored.astype(np.int64) & 1) == 0
        order = np.argsort(-scores[kept], kind="stable")
        right = np.cumsum((hits[kept].astype(np.int64) & 1)[order])
        if not len(right) or objects == 0:
            continue
        precision = right / np.arange(1, len(right) + 1)
        thin = np.unique(np.linspace(0, len(right) - 1, 200).astype(int))
        lines.append(Curve(label, list(100 * right[thin] / objects), list(precision[thin]), series))
    if not lines:
        return []
    drawing = charts.curves(
        "Precision over recall, IoU 0.5", lines, x_label="recall, percent", percent=True
    )
    legend = " and ".join(
        f"{line.label} ({'blue' if not line.series else 'orange'})" for line in lines
    )
    caption = f"Precision over recall at IoU 0.5, all classes together, in percent: {legend}."
    return [CellChart("precision-recall", caption, drawing)]


def _calibration(outcomes: pd.DataFrame) -> list[CellChart]:
    known = outcomes[[CONFIDENCE, "label", "prediction"]].dropna()
    sure = known[CONFIDENCE].to_numpy(dtype=np.float64)
    if not len(sure) or sure.min() < 0 or sure.max() > 1:
        return []
    right = (known["label"] == known["prediction"]).to_numpy(dtype=np.float64)
    drawing, error = charts.calibration("Calibration", sure, right)
    caption = f"Accuracy over confidence; expected calibration error {100 * error:.1f} points."
    return [CellChart("calibration", caption, drawing)]
