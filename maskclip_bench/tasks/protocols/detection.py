"""Object detection and instance segmentation: Mask R-CNN trained on the backbone by mmdet.

S images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pandas as pd

from maskclip_bench import storage
from maskclip_bench.backbones.dense_job import DenseFolder, DenseSplit
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.data.dense import check_coco, read_coco
from maskclip_bench.errors import DataError
from maskclip_bench.results.measurement import Measurement, Metric, statistic_value
from maskclip_bench.results.outcome_columns import Statistic
from maskclip_bench.tasks.dense_jobs import DenseProtocol
from maskclip_bench.tasks.dense_outcomes import (
    KINDS,
    SplitResult,
    check_agreement,
    match_columns,
    nothing_found,
    outcome_table,
    suffixed,
)
from maskclip_bench.tasks.protocols.base import ProtocolContext, split_name

AP_NAMES = {
    "mAP": "ap",
    "mAP_50": "ap50",
    "mAP_75": "ap75",
    "mAP_s": "ap_small",
    "mAP_m": "ap_medium",
    "mAP_l": "ap_large",
}
"""mmdet's names -> ours; COCO's definitions: small below 32^2 pixels, large above 96^2."""

OVER_ALL_SIZES = ("mAP", "mAP_50", "mAP_75")

RECALLS = {"object_recall": "num_found", "localization_recall": "num_located"}
"""Recalls made of per-image counts, so that they have intervals: detections of the object's class
count for the first, of any class for the second."""

OBJECTS = "num_objects"

AP_STATISTICS: Mapping[str, Statistic] = {"50": "coco_ap50", "75": "coco_ap75"}
"""Ends of the names of APs at one threshold."""

MMDET_ROUNDING = 6e-4
"""mmdet's `CocoMetric` rounds to three digits of a fraction."""


class Detection(DenseProtocol):
    """Box and mask AP of a detector trained with the backbone."""

    name = "detection"
    title = "Detection"
    metric_labels: ClassVar[Mapping[str, str]] = {"box_ap": "APᵇ", "mask_ap": "APᵐ"}
    table_columns = ("box_ap", "mask_ap")
    toolbox = "mmdet"
    expected_seconds = 65.0

    def split(self, dataset: Dataset, root: Path, folder: DenseFolder) -> DenseSplit:
        """The annotation file, or a copy of it with the categories in the order of the labels."""
        (annotations,) = dataset.annotations
        content = read_coco(annotations)
        known = {str(category["name"]): category for category in content["categories"]}
        assert dataset.classes is not None
        ordered = [  # a file may leave out categories that it has no objects of
            known.get(name, {"id": int(key), "name": name})
            for key, name in zip(dataset.classes.keys, dataset.classes.names, strict=True)
        ]
        if ordered != content["categories"]:
            annotations = folder.annotations(dataset.split)
            storage.write_json(annotations, {**content, "categories": ordered})
        return DenseSplit(
            name=dataset.split, images=str(root / dataset.split), annotations=str(annotations)
        )

    def check_split(self, dataset: Dataset, root: Path) -> None:
        """See `check_coco`."""
        (annotations,) = dataset.annotations
        check_coco(annotations, root / dataset.split)

    def run(self, context: ProtocolContext) -> Measurement:
        """Train and test; see `DenseProtocol.run_dense` for what it raises.

        Raises:
            DataError: The training or the test split has no objects.
        """
        self._need_objects(context)
        result = self.run_dense(context)
        splits = [part if _has_scores(part) else nothing_found(part) for part in result.splits]
        without = [part.split for part in splits if not part.outcomes[OBJECTS].sum()]
        tested = [part for part in splits if part.split not in without]
        columns = {
            suffixed(name, part.suffix): {part.split: (part.outcomes[key], part.outcomes[OBJECTS])}
            for part in tested
            for name, key in RECALLS.items()
        }
        outcomes = outcome_table(splits, columns).assign(**match_columns(splits))
        metrics: dict[str, Metric] = {}
        for part in tested:
            for name, value in average_precisions(part.scores, has_objects=True).items():
                metrics[suffixed(name, part.suffix)] = ap_metric(name, value, part, outcomes)
            for name in (suffixed(name, part.suffix) for name in RECALLS):
                recall = statistic_value(outcomes, name, "mean_ratio")
                metrics[name] = Metric(recall or 0.0, statistic="mean_ratio")
        return Measurement(
            metrics=metrics,
            primary_metric="box_ap",
            outcomes=outcomes,
            preset=result.preset,
            preset_version=context.settings.preset_version,
            details={
                "config": result.config.name,
                "toolbox_scores": {part.split: part.scores for part in result.splits},
                **({"splits_without_objects": without} if without else {}),
                "recalls": "share of objects met at IoU 0.5, score >= 0.05, by class",
                **result.report,
            },
        )

    def _need_objects(self, context: ProtocolContext) -> None:
        for ours in ("train", "test"):
            name = split_name(context.task, ours)
            (annotations,) = self.open(context.task, name, context.workspace).annotations
            if not read_coco(annotations)["annotations"]:
                raise DataError(
                    f"{context.task.name}: {annotations} has no objects, so nothing can be "
                    f"{'learned' if ours == 'train' else 'scored'}. Name another split as {ours}; "
                    "one without objects may be named in also_test, and gets no scores."
                )


def average_precisions(scores: dict[str, float], *, has_objects: bool = False) -> dict[str, float]:
    """COCO's APs from mmdet's scores, which are fractions already, rounded to three digits.

    A size without objects has no AP (mmdet says -1). A detector without any detection gets no AP
    from mmdet; where there are objects, it is 0.

    Args:
        scores: As mmdet gave them.
        has_objects: Whether the tested images show any.

    Example:
        >>> average_precisions({"coco/bbox_mAP": 0.25, "coco/segm_mAP_s": -1.0})
        {'box_ap': 0.25}
    """
    if has_objects and not any(f"coco/{kind}_mAP" in scores for kind in KINDS):
        scores = {f"coco/{kind}_{name}": 0.0 for kind in KINDS for name in OVER_ALL_SIZES}
    return {
        f"{ours}_{short}": value
        for kind, ours in KINDS.items()
        for name, short in AP_NAMES.items()
        if (value := scores.get(f"coco/{kind}_{name}", -1.0)) >= 0
    }


def ap_metric(name: str, theirs: float, part: SplitResult, outcomes: pd.DataFrame) -> Metric:
    """An AP, made of the matched detections and held against mmdet's.

    Where the job stored no matches (it ran under a version that did not), it is mmdet's, without an
    interval.

    Args:
        name: In our words, without the suffix of the split.
        theirs: mmdet's value.
        part: What the job found on the split.
        outcomes: With the columns of `match_columns`.

    Raises:
        DataError: The two differ by more than mmdet's rounding.
    """
    whole, end = name.partition("_ap")[0] + "_ap", name.partition("_ap")[2]
    statistic = AP_STATISTICS.get(end, "coco_ap")
    matches = whole if end in AP_STATISTICS else name
    columns = (suffixed(whole, part.suffix), suffixed(matches, part.suffix))
    if f"{columns[1]}.objects" not in outcomes:
        return Metric(theirs, statistic="none")
    ours = statistic_value(outcomes, name, statistic, columns)
    assert ours is not None
    check_agreement(f"{name} on {part.split}", ours, theirs, tolerance=MMDET_ROUNDING)
    return Metric(ours, statistic=statistic, columns=columns)


def _has_scores(part: SplitResult) -> bool:
    """Whether mmdet evaluated any detection."""
    return any(f"coco/{kind}_mAP" in part.scores for kind in KINDS)
