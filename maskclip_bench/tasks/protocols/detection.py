"""Object detection and instance segmentation: Mask R-CNN trained on the backbone by mmdet.

S images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from maskclip_bench import storage
from maskclip_bench.backbones.dense_job import DenseFolder, DenseSplit
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.data.dense import check_coco, read_coco
from maskclip_bench.errors import DataError
from maskclip_bench.results.measurement import Measurement, Metric, mean_ratio
from maskclip_bench.tasks.dense_jobs import DenseProtocol
from maskclip_bench.tasks.dense_outcomes import match_columns, outcome_table, suffixed
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

KINDS = {"bbox": "box", "segm": "mask"}


class Detection(DenseProtocol):
    """Box and mask AP of a detector trained with the backbone."""

    name = "detection"
    title = "Detection"
    metric_labels: ClassVar[Mapping[str, str]] = {"box_ap": "APᵇ", "mask_ap": "APᵐ"}
    table_columns = ("box_ap", "mask_ap")
    toolbox = "mmdet"
    expected_seconds = 60.0

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
        metrics: dict[str, Metric] = {}
        columns = {}
        without = [part.split for part in result.splits if not part.outcomes["num_objects"].sum()]
        for part in result.splits:
            num_objects = int(part.outcomes["num_objects"].sum())
            if not num_objects:
                continue
            for name, metric in average_precisions(part.scores, num_objects=num_objects).items():
                metrics[suffixed(name, part.suffix)] = metric
            for name, key in RECALLS.items():
                hits, objects = part.outcomes[key], part.outcomes["num_objects"]
                value = mean_ratio(hits.sum(0).astype(float), objects.sum(0).astype(float))
                metrics[suffixed(name, part.suffix)] = Metric(float(value), statistic="mean_ratio")
                columns[suffixed(name, part.suffix)] = {part.split: (hits, objects)}
        return Measurement(
            metrics=metrics,
            primary_metric="box_ap",
            outcomes=outcome_table(result.splits, columns).assign(
                **match_columns(result.splits, "box_ap", "bbox"),
                **match_columns(result.splits, "mask_ap", "segm"),
            ),
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


def average_precisions(scores: dict[str, float], *, num_objects: int = 0) -> dict[str, Metric]:
    """COCO's APs from mmdet's scores, which are fractions already, rounded to three digits.

    A size without objects has no AP (mmdet says -1). AP has no per-image outcomes, so no interval.
    A detector without any detection gets no AP from mmdet; where there are objects, it is 0.

    Args:
        scores: As mmdet gave them.
        num_objects: Objects in the tested images.

    Example:
        >>> list(average_precisions({"coco/bbox_mAP": 0.25, "coco/segm_mAP_s": -1.0}))
        ['box_ap']
    """
    if num_objects and not any(f"coco/{kind}_mAP" in scores for kind in KINDS):
        scores = {f"coco/{kind}_{name}": 0.0 for kind in KINDS for name in OVER_ALL_SIZES}
    metrics = {}
    for kind, ours in KINDS.items():
        for name, short in AP_NAMES.items():
            value = scores.get(f"coco/{kind}_{name}", -1.0)
            if value >= 0:
                metrics[f"{ours}_{short}"] = Metric(value, statistic="none")
    return metrics
