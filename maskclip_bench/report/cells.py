"""What the page shows of cells: provenance, charts, mistakes; and outcomes for the comparison."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from maskclip_bench.data.dataset import Dataset
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.report.cell_charts import (
    CONFIDENCE,
    CellChart,
    cell_charts,
    class_ratios,
    class_words,
)
from maskclip_bench.report.images import TILE, Gallery, image_id
from maskclip_bench.report.selection import ReportRow, Selection
from maskclip_bench.results.outcome_columns import ratio_column_names
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.table_catalogue import metric_label, protocol_title

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NUM_MISTAKES = 24


@dataclass
class CellPage:
    """One cell's page.

    Attributes:
        record: The cell.
        row: Its row.
        label: Of the row, with the seed.
        title: Protocol and data set.
        charts: Of the outcomes.
        metrics: One line a metric, as text.
        facts: Heading -> (what, value) lines of provenance.
        mistakes: Pictures of what went wrong: style, alternative text, caption.
        mistakes_are: What they are.
    """

    record: Record
    row: ReportRow
    label: str
    title: str
    charts: list[CellChart] = field(default_factory=list)
    metrics: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    mistakes: list[dict[str, str]] = field(default_factory=list)
    mistakes_are: str = ""


def cell_path(record: Record) -> str:
    """The cell's page, below the report's folder."""
    return f"cells/{record.row_id}/{record.cell.protocol}__{record.cell.dataset}.html"


def outcomes_of(store: RecordStore, record: Record) -> pd.DataFrame | None:
    """A record's outcomes; None where there are none, or they cannot be read."""
    if record.status != "ok" or record.outcomes_file is None:
        return None
    try:
        return store.outcomes(record)
    except MaskCLIPBenchError as error:
        logger.warning("No outcomes of %s x %s: %s", record.row_id, record.task, error)
        return None


def cell_page(
    record: Record, selection: Selection, outcomes: pd.DataFrame | None, gallery: Gallery
) -> CellPage:
    """All that a cell's page shows."""
    row = selection.row(record.cell.backbone)
    several = len(row.seeds) > 1 or record.cell.seed != 0
    task = selection.datasets.get(record.cell.dataset)
    page = CellPage(
        record,
        row,
        f"{row.label}, seed {record.cell.seed}" if several else row.label,
        f"{protocol_title(record)}, {task.display_name if task else record.cell.dataset}",
        facts=facts_of(record),
    )
    if record.status != "ok":
        return page
    page.metrics = [_metric_line(record, name) for name in record.metrics]
    names = gallery.class_names[record.cell.dataset]
    page.charts = cell_charts(record, outcomes, names, series=row.series)
    if outcomes is not None:
        page.mistakes, page.mistakes_are = _mistakes(record, outcomes, names, gallery)
    return page


def _metric_line(record: Record, name: str) -> dict[str, str]:
    metric = record.metrics[name]
    interval = (
        ""
        if metric.low is None or metric.high is None
        else f"{100 * metric.low:.1f} to {100 * metric.high:.1f}"
    )
    return {
        "name": name,
        "label": metric_label(record, name),
        "value": f"{100 * metric.value:.2f}",
        "interval": interval,
        "chance": "" if metric.chance_level is None else f"{100 * metric.chance_level:.1f}",
        "samples": "" if metric.num_samples is None else f"{metric.num_samples:,}",
        "groups": "" if metric.num_groups is None else f"{metric.num_groups:,}",
        "method": (metric.interval or "").replace("_", " "),
        "primary": "yes" if name == record.primary_metric else "",
    }


def facts_of(record: Record) -> dict[str, list[tuple[str, str]]]:
    """Provenance as text, by heading."""
    provenance = dict(record.provenance)
    libraries = provenance.pop("libraries", {})
    hardware = provenance.pop("hardware", {})
    command = provenance.pop("command", None)
    cell: dict[str, Any] = {
        "row": record.row_id,
        "task": record.task,
        "preset": f"{record.preset} v{record.preset_version}" if record.preset else None,
        "task version": record.cell.task_version,
        "world": record.cell.world,
        "limits": ", ".join(f"{k} {v}" for k, v in record.budget.items()) or "none",
        "took": None if record.seconds is None else f"{record.seconds:.1f} s",
        "command": " ".join(map(str, command)) if isinstance(command, list) else command,
        "outcomes": record.outcomes_file,
        "seal": record.seal,
    }
    groups: dict[str, Mapping[str, Any]] = {
        "Cell": cell,
        "Hashes of what the number depends on": {
            "cell": record.cell.cell_fingerprint,
            **record.fingerprints,
        },
        "Software": {**provenance, **(libraries if isinstance(libraries, dict) else {})},
        "Machine": hardware if isinstance(hardware, dict) else {"hardware": hardware},
        "Details of the protocol": record.details,
    }
    if record.error is not None:
        groups = {"Failed": {"error": f"{record.error.type}: {record.error.message}"}, **groups}
    return {
        heading: [(str(k), _fact(v)) for k, v in values.items() if v not in (None, "", {})]
        for heading, values in groups.items()
        if values
    }


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_fact(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_fact(inner) for inner in value)
    return str(value)


@dataclass(frozen=True)
class Mistake:
    """One image that went wrong.

    Attributes:
        sample_id: Of the outcome row.
        image: Id of the image in the data set.
        caption: Truth and prediction, or the image's own value.
    """

    sample_id: str
    image: str
    caption: str


def mistakes_of(
    record: Record, outcomes: pd.DataFrame, names: list[str] | None, split: str | None
) -> tuple[list[Mistake], str]:
    """The worst images, wrong predictions or the lowest own values; and what they are.

    Args:
        record: The cell.
        outcomes: Its outcomes.
        names: Of the classes.
        split: The data set's own name of the test split.
    """
    wanted = [*record.table_columns, record.primary_metric or "", *record.metrics]
    for metric in wanted:
        values = own_values(outcomes, metric, record.metrics[metric].statistic)
        if values is not None:
            break
    else:
        return [], ""
    predicted = {"label", "prediction"} <= set(outcomes.columns)
    order = np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")
    sure = predicted and CONFIDENCE in outcomes.columns
    if sure:
        order = np.argsort(-outcomes[CONFIDENCE].to_numpy(dtype=np.float64), kind="stable")
    elif predicted:
        order = _spread_over_classes(outcomes, order, values)
    found = []
    for index in order:
        if math.isnan(values[index]) or (predicted and values[index] > 0):
            continue
        sample = str(outcomes["sample_id"].iloc[index])
        caption = f"{100 * values[index]:.0f} %"
        if predicted:
            said, truth = (int(outcomes[c].iloc[index]) for c in ("prediction", "label"))
            words = class_words(names, max(said, truth) + 1)
            caption = f"{words[truth]} → {words[said]}"
            if sure:
                caption += f" ({100 * outcomes[CONFIDENCE].iloc[index]:.0f} %)"
        found.append(Mistake(sample, image_id(sample, split), caption))
        if len(found) == 4 * NUM_MISTAKES:
            break
    if sure:
        return found, "The wrong predictions of the highest confidence: truth → what was said."
    if predicted:
        what = "Wrong predictions, from as many classes as there are: truth → what was said."
        return found, what
    return found, f"The images of the lowest {metric_label(record, metric)}, each by itself."


def _mistakes(
    record: Record, outcomes: pd.DataFrame, names: list[str] | None, gallery: Gallery
) -> tuple[list[dict[str, str]], str]:
    """Mistakes with their pictures, as the page shows them."""
    sheet, dataset = gallery.sheet(record.cell.dataset), gallery.dataset(record.cell.dataset)
    if sheet is None or dataset is None:
        return [], ""
    mistakes, what = mistakes_of(record, outcomes, names, dataset.split)
    found: list[dict[str, str]] = []
    for mistake in mistakes:
        style = sheet.style(mistake.image, size=TILE, up="../../")
        if style is not None and len(found) < NUM_MISTAKES:
            alt = f"{mistake.sample_id}: {mistake.caption}"
            found.append({"style": style, "alt": alt, "caption": mistake.caption})
    return found, what


def _spread_over_classes(outcomes: pd.DataFrame, order: Ints, values: Floats) -> Ints:
    """Wrong images so that the classes take turns, those of the lowest accuracy first."""
    labels = outcomes["label"].to_numpy()
    accuracy = pd.Series(values).groupby(labels).mean()
    turn = pd.Series(np.arange(len(order)), index=order).groupby(labels[order]).cumcount()
    table = pd.DataFrame({"index": order, "turn": turn.to_numpy()})
    table["accuracy"] = accuracy.reindex(labels[order]).to_numpy()
    spread: Ints = table.sort_values(["turn", "accuracy"], kind="stable")["index"].to_numpy()
    return spread


def own_values(outcomes: pd.DataFrame, metric: str, statistic: str) -> Floats | None:
    """What each sample alone gives [S]; None where a sample gives nothing by itself.

    A ratio of an image alone is the mean over the classes that it has.
    """
    if statistic in ("mean", "mean_per_class") and metric in outcomes.columns:
        plain: Floats = outcomes[metric].to_numpy(dtype=np.float64)
        return plain
    columns = ratio_column_names(metric)
    if statistic != "mean_ratio" or not set(columns) <= set(outcomes.columns):
        return None
    values = np.full(len(outcomes), np.nan)
    for index, (top, bottom) in enumerate(zip(*(outcomes[c] for c in columns), strict=True)):
        if top is None or bottom is None:
            continue
        above, below = np.asarray(top, dtype=float), np.asarray(bottom, dtype=float)
        if (below > 0).any():
            values[index] = float((above[below > 0] / below[below > 0]).mean())
    return values


def detail_of(
    column: Mapping[str, Any], selection: Selection, store: RecordStore, gallery: Gallery
) -> dict[str, Any] | None:
    """One column's outcomes of all rows for the page's script: by image, and by class.

    Every row is shown by its first seed. Rows of other samples than the first are left out.

    Returns:
        None where no row has outcomes of the metric.
    """
    metric, task = column["metric"], column["task"]
    dataset_name = task.partition("/")[2]
    detail: dict[str, Any] | None = None
    for row in selection.rows:
        records = [r for r in selection.ok(row.backbone, task).values() if metric in r.metrics]
        outcomes = outcomes_of(store, records[0]) if records else None
        if outcomes is None:
            continue
        outcomes = outcomes.sort_values("sample_id", kind="stable").reset_index(drop=True)
        statistic = records[0].metrics[metric].statistic
        values = own_values(outcomes, metric, statistic)
        if values is None:
            continue
        if detail is None:
            detail = _frame(column, outcomes, statistic, dataset_name, gallery)
        if detail["ids"] != outcomes["sample_id"].astype(str).tolist():
            continue
        entry: dict[str, Any] = {"values": _compact(values)}
        if "prediction" in outcomes.columns:
            entry["predictions"] = [_whole(v) for v in outcomes["prediction"]]
        if statistic == "mean_ratio":
            entry["by_class"] = _compact(class_ratios(outcomes, metric))
        detail["rows"][row.backbone] = entry
    return detail


def _frame(
    column: Mapping[str, Any],
    outcomes: pd.DataFrame,
    statistic: str,
    dataset_name: str,
    gallery: Gallery,
) -> dict[str, Any]:
    """What all rows share: samples, groups, classes, pictures."""
    ids = outcomes["sample_id"].astype(str).tolist()
    groups, _ = pd.factorize(outcomes["group"])
    labels, names = _labels(outcomes, gallery.class_names[dataset_name])
    sheet, dataset = gallery.sheet(dataset_name), gallery.dataset(dataset_name)
    places = None
    if sheet is not None and dataset is not None:
        places = [sheet.place.get(image_id(name, dataset.split), -1) for name in ids]
    if statistic == "mean_ratio":
        labels = None
        number = len(class_ratios(outcomes, column["metric"]))
        known = gallery.class_names[dataset_name]
        names = list(known) if known and len(known) == number else class_words(None, number)
    captions = _captions(ids, dataset)
    return {
        "ids": ids,
        "groups": groups.tolist(),
        "labels": labels,
        "names": names,
        "captions": captions,
        "sheet": sheet.to_json() if sheet else None,
        "places": places,
        "rows": {},
    }


def _labels(
    outcomes: pd.DataFrame, names: list[str] | None
) -> tuple[list[int] | None, list[str] | None]:
    """Class of each sample; where outcomes have no label, the folder that the image is in."""
    if "label" in outcomes.columns and outcomes["label"].notna().all():
        labels = outcomes["label"].astype(int).tolist()
        predictions = outcomes["prediction"].dropna() if "prediction" in outcomes else []
        highest = max([*labels, *(int(p) for p in predictions)], default=-1)
        return labels, class_words(names, max(highest + 1, len(names or ())))
    ids = outcomes["sample_id"].astype(str)
    folders = ids.str.rpartition("/")[0]
    if (folders == "").any() or ids.str.startswith(("image:", "text:")).any():
        return None, None
    codes, found = pd.factorize(folders, sort=True)
    if not 1 < len(found) < len(ids):
        return None, None
    same = names is not None and len(names) == len(found)
    return codes.tolist(), list(names) if names is not None and same else [str(f) for f in found]


def _captions(ids: list[str], dataset: Dataset | None) -> list[str | None] | None:
    """The text of each sample that is one: "text:7:ID" are the texts of image ID, in order."""
    if dataset is None or dataset.captions is None:
        return None
    of_image = dict(zip(dataset.sample_ids, dataset.captions, strict=True))
    numbers: dict[str, list[int]] = {}
    for name in ids:
        if name.startswith("text:"):
            _, number, image = name.split(":", 2)
            numbers.setdefault(image, []).append(int(number))
    if not numbers:
        return None
    order = {image: sorted(found) for image, found in numbers.items()}
    texts: list[str | None] = []
    for name in ids:
        texts.append(None)
        if name.startswith("text:"):
            _, number, image = name.split(":", 2)
            position = order[image].index(int(number))
            captions = of_image.get(image, [])
            texts[-1] = captions[position] if position < len(captions) else None
    return texts


def _compact(values: Floats) -> list[float | int | None]:
    """Numbers for JSON with three decimals; NaN is null."""
    return [
        None if math.isnan(v) else int(v) if float(v).is_integer() else round(float(v), 3)
        for v in values
    ]


def _whole(value: Any) -> int | None:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else int(value)
