"""Measurements of every kind, small: classification, retrieval, segmentation, detection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.outcome_columns import ratio_column_names
from maskclip_bench.results.records import Cell, Record, RecordStore, measured_record

NUM = 24
CLASSES = 3


def classification(shift: int, *, hostile: str = "") -> Measurement:
    """24 images of 3 classes; those below `shift` are wrong."""
    labels = np.arange(NUM) % CLASSES
    predictions = np.where(np.arange(NUM) < shift, (labels + 1) % CLASSES, labels)
    hits = (labels == predictions).astype(float)
    folders = [f"{hostile}class{label}" for label in labels]
    outcomes = pd.DataFrame(
        {
            "sample_id": [f"{folder}/{i:02d}.jpg" for i, folder in enumerate(folders)],
            "group": [str(i // 2) for i in range(NUM)],
            "label": labels,
            "prediction": predictions,
            "confidence": np.linspace(0.2, 1.0, NUM),
            "top1_accuracy": hits,
            "top1_accuracy_k10": hits,
            "top1_accuracy_k20": hits,
            "top1_accuracy_k200": hits,
        }
    )
    names = ["top1_accuracy", *(f"top1_accuracy_k{k}" for k in (10, 20, 200))]
    metrics = {name: Metric(float(hits.mean()), chance_level=1 / CLASSES) for name in names}
    return Measurement(metrics, "top1_accuracy", outcomes, preset="one")


def retrieval(shift: int) -> Measurement:
    """12 images with a caption each."""
    half = NUM // 2
    nothing = np.full(half, np.nan)
    hits = (np.arange(half) >= shift).astype(float)
    ids = [f"{i}.jpg" for i in range(half)]
    outcomes = pd.DataFrame(
        {
            "sample_id": [f"image:{i}" for i in ids] + [f"text:{n}:{i}" for n, i in enumerate(ids)],
            "group": ids * 2,
            "image_to_text_recall@1": np.concatenate([hits, nothing]),
            "text_to_image_recall@1": np.concatenate([nothing, hits]),
        }
    )
    metrics = {
        name: Metric(float(hits.mean()), label=label)
        for name, label in (
            ("image_to_text_recall@1", "I→T R@1"),
            ("text_to_image_recall@1", "T→I R@1"),
        )
    }
    return Measurement(metrics, "image_to_text_recall@1", outcomes, preset="plain")


def segmentation(shift: int) -> Measurement:
    """12 images, 3 classes; the intersection shrinks with `shift`."""
    half = NUM // 2
    union = np.tile([10, 20, 0], (half, 1))
    union[0, 2] = 5
    inner = np.maximum(union - shift, 0)
    ids = [f"val/{i}.jpg" for i in range(half)]
    top, bottom = ratio_column_names("mean_iou")
    outcomes = pd.DataFrame(
        {"sample_id": ids, "group": ids, top: inner.tolist(), bottom: union.tolist()}
    )
    value = float((inner.sum(0) / union.sum(0)).mean())
    metrics = {"mean_iou": Metric(value, statistic="mean_ratio", label="mIoU")}
    return Measurement(metrics, "mean_iou", outcomes, preset="patches")


def detection(shift: int) -> Measurement:
    """6 images with two detections and two objects each."""
    ids = [f"val/{i}" for i in range(6)]
    outcomes = pd.DataFrame(
        {
            "sample_id": ids,
            "group": ids,
            "box_ap.scores": [[0.9, 0.4 - 0.01 * i] for i in range(6)],
            "box_ap.classes": [[0, 1]] * 6,
            "box_ap.hits": [[1, int(i >= shift)] for i in range(6)],
            "box_ap.ignored": [[0, 0]] * 6,
            "box_ap.objects": [[1, 1]] * 6,
        }
    )
    metrics = {"box_ap": Metric(0.5, statistic="none", label="AP")}
    return Measurement(metrics, "box_ap", outcomes, preset="boxes")


MADE: dict[str, Callable[[int], Measurement]] = {
    "knn/objects": classification,
    "retrieval/captions": retrieval,
    "linear_segmentation/scenes": segmentation,
    "detection/things": detection,
}


def saver(store: RecordStore) -> Callable[..., Record]:
    """A function that records a measurement as a cell of a store."""

    def save_cell(
        backbone: str, task: str, measurement: Measurement, *, seed: int = 0, weights: str = "w"
    ) -> Record:
        protocol, dataset = task.split("/")
        cell = Cell(
            backbone=backbone,
            seed=seed,
            protocol=protocol,
            dataset=dataset,
            world="real",
            cell_fingerprint="f",
        )
        record = measured_record(
            cell,
            measurement,
            fingerprints={"weights": weights},
            provenance={"time": "2026-01-02T03:04:05+00:00", "hardware": {"device": "cpu"}},
            protocol_title=protocol.replace("_", " ").capitalize(),
            num_resamples=200,
        )
        return store.save(record, measurement.outcomes)

    return save_cell
