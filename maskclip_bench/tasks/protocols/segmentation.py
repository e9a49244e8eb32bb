"""Semantic segmentation: UperNet (or what the config says) trained on the backbone by mmseg.

S images, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from maskclip_bench.backbones.dense_job import DenseFolder, DenseSplit
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.data.readers import root_of
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.outcome_columns import mean_ratio
from maskclip_bench.tasks.dense_jobs import DenseProtocol
from maskclip_bench.tasks.dense_outcomes import check_agreement, outcome_table, suffixed
from maskclip_bench.tasks.protocols.base import ProtocolContext

MMSEG_ROUNDING = 1e-4
"""mmseg's `IoUMetric` rounds to two digits of a percentage, half of this; the other half is for its
sums in float32, inexact above 2**24 pixels of a class, which ADE20K's validation split exceeds."""


class Segmentation(DenseProtocol):
    """mIoU of a segmentation head trained with the backbone."""

    name = "segmentation"
    title = "Segmentation"
    metric_labels: ClassVar[Mapping[str, str]] = {"mean_iou": "mIoU"}
    toolbox = "mmseg"
    expected_seconds = 45.0

    def split(self, dataset: Dataset, root: Path, folder: DenseFolder) -> DenseSplit:
        """The reader's list of images and masks."""
        return DenseSplit(
            name=dataset.split,
            images=str(root / "images" / dataset.split),
            samples=[
                (str(image), str(mask))
                for image, mask in zip(dataset.image_paths, dataset.annotations, strict=True)
            ],
        )

    def check_split(self, dataset: Dataset, root: Path) -> None:
        """Masks have their image's size, and no value that is no class."""
        dataset.check_masks(len(dataset.classes) if dataset.classes is not None else None)

    def run(self, context: ProtocolContext) -> Measurement:
        """Train, test, and count pixels; see `DenseProtocol.run_dense` for what it raises."""
        result = self.run_dense(context)
        names, kinds = classes_of(context)
        metrics, columns, details = {}, {}, {}
        for part in result.splits:
            found, lists = segmentation_metrics(part.outcomes, kinds)
            check_agreement(
                f"mIoU on {part.split}",
                found["mean_iou"].value,
                part.scores["mIoU"] / 100,
                tolerance=MMSEG_ROUNDING,
            )
            for name, metric in found.items():
                metrics[suffixed(name, part.suffix)] = metric
                columns[suffixed(name, part.suffix)] = {part.split: lists[name]}
            details[suffixed("class_iou", part.suffix)] = class_iou(part.outcomes, names)
        return Measurement(
            metrics=metrics,
            primary_metric="mean_iou",
            outcomes=outcome_table(result.splits, columns),
            preset=result.preset,
            preset_version=context.settings.preset_version,
            details={
                **details,
                "config": result.config.name,
                "toolbox_scores": {part.split: part.scores for part in result.splits},
                **result.report,
            },
        )


Counts = dict[str, NDArray[Any]]
"""`intersection`, `predicted` and `labelled` pixels, each int64 [S, C], by name."""


def segmentation_metrics(
    counts: Counts, kinds: list[str] | None
) -> tuple[dict[str, Metric], dict[str, tuple[NDArray[Any], NDArray[Any]]]]:
    """Metrics of pixel counts, and the numerators and denominators [S, C] of each.

    `mean_iou`: mean over classes of intersection / union. `mean_class_accuracy`: mean over classes
    of the share of their pixels that is right (mmseg's mAcc). `pixel_accuracy`: share of all
    labelled pixels that is right (aAcc). `{kind}_mean_iou`: over the classes of one kind.

    Args:
        counts: See `Counts`.
        kinds: Kind of each class ("stuff", "thing"), or None.

    Example:
        One image, two classes, 3 of 4 and 1 of 2 pixels right, no other predicted: predicted
        (4, 2), intersection (3, 1), union (5, 3), so mean_iou = (3/5 + 1/3) / 2.
    """
    inner, labelled = counts["intersection"], counts["labelled"]
    union = counts["predicted"] + labelled - inner
    lists = {
        "mean_iou": (inner, union),
        "mean_class_accuracy": (inner, labelled),
        "pixel_accuracy": (inner.sum(1, keepdims=True), labelled.sum(1, keepdims=True)),
    }
    for kind in sorted(set(kinds or [])):
        of_kind = np.array([other == kind for other in kinds or []])
        lists[f"{kind}_mean_iou"] = (inner[:, of_kind], union[:, of_kind])
    metrics = {
        name: Metric(
            float(mean_ratio(top.sum(0).astype(float), bottom.sum(0).astype(float))),
            statistic="mean_ratio",
        )
        for name, (top, bottom) in lists.items()
    }
    return metrics, lists


def class_iou(counts: Counts, names: list[str] | None) -> dict[str, float]:
    """IoU of each class that occurs, by name."""
    inner = counts["intersection"].sum(0)
    union = counts["predicted"].sum(0) + counts["labelled"].sum(0) - inner
    labels = names or [str(index + 1) for index in range(len(union))]
    return {
        label: round(float(top / bottom), 6)
        for label, top, bottom in zip(labels, inner, union, strict=True)
        if bottom > 0
    }


def classes_of(context: ProtocolContext) -> tuple[list[str] | None, list[str] | None]:
    """Names of the classes of mask values 1..C, and their kinds, where they are declared.

    The data set's own list (`reader.classes`) says both; `class_names.names` of the task names.
    """
    task = context.task
    names = kinds = None
    listed = getattr(task.reader, "classes", None)
    if listed is not None:
        root = root_of(task.reader, context.workspace.data)
        names, kinds = class_list(root / listed)
    declared = task.class_names.names
    if isinstance(declared, list):
        names = [name if isinstance(name, str) else name[0] for name in declared]
    return names, kinds


def class_list(path: Path) -> tuple[list[str] | None, list[str] | None]:
    """Names and kinds of the classes from a class list in JSON; None for what it does not say."""
    if path.suffix != ".json" or not path.is_file():
        return None, None
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not all(isinstance(entry, dict) for entry in entries):
        return None, None
    kinds = [entry.get("kind") for entry in entries]
    return [entry["name"] for entry in entries], kinds if all(kinds) else None
