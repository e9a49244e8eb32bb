"""Per-image outcomes beside the toolboxes' own metrics, for intervals and paired tests.

They are listed in `val_evaluator` after `IoUMetric` or `CocoMetric`, return no number, and write
one `.npz` file (arrays only, nothing pickled).

Shapes: S images, C classes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor
from torchvision.ops import box_iou

from maskclip_bench.data.dense import count_pixels
from maskclip_bench.storage import atomic_file

MAX_DETECTIONS = 100
"""Of an image and class, that COCO's AP looks at."""

COCO_THRESHOLDS = np.round(np.linspace(0.5, 0.95, 10), 6)
"""Of the IoU, that COCO's AP is the mean over."""


class _Outcomes(BaseMetric):
    """Collects one dict of arrays per image, from all ranks, and writes them to a file."""

    def __init__(self, file: str, collect_device: str = "cpu") -> None:
        super().__init__(collect_device=collect_device)
        self.file = Path(file)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Write the file (on the main process alone, which mmengine calls); no metric."""
        arrays = {key: np.stack([result[key] for result in results]) for key in results[0]}
        arrays |= self.more_arrays(results)
        with atomic_file(self.file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        return {}

    def more_arrays(self, results: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """What else goes into the file."""
        return {}


@METRICS.register_module()
class SegmentationOutcomes(_Outcomes):
    """Pixels per image and class: `intersection`, `predicted`, `labelled`, each int64 [S, C].

    The union of a class is predicted + labelled - intersection. Unlabelled pixels count nowhere.

    Args:
        file: The `.npz` written; also holds `sample_id` [S], the images' paths below `images`.
        images: Folder of the images; None = the deepest folder that holds them all.
        ignore_index: Label of unlabelled pixels.
        collect_device: mmengine's.
    """

    def __init__(
        self,
        file: str,
        images: str | None = None,
        ignore_index: int = 255,
        collect_device: str = "cpu",
    ) -> None:
        super().__init__(file, collect_device)
        self.images = images
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch."""
        num_classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            predicted = sample["pred_sem_seg"]["data"].squeeze(0).cpu().numpy()  # [H, W]
            labels = sample["gt_sem_seg"]["data"].squeeze(0).cpu().numpy()
            counts = count_pixels(predicted, labels, num_classes, self.ignore_index)
            self.results.append({"sample_id": np.asarray(sample["img_path"]), **counts})

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Write the file, with ids below the folder of the images."""
        paths = [Path(str(result["sample_id"])) for result in results]
        folder = self.images or os.path.commonpath([path.parent for path in paths])
        for result, path in zip(results, paths, strict=True):
            inside = path.is_relative_to(folder)
            name = path.relative_to(folder) if inside else path
            result["sample_id"] = np.asarray(name.as_posix())
        return super().compute_metrics(results)


@METRICS.register_module()
class DetectionOutcomes(_Outcomes):
    """Objects and detections per image and class, each array int64 [S, C].

    `num_objects`, `num_found`, `num_located`, `num_detections`.

    An object is found when one of the detections of its class with at least `min_score`, taken
    best first and each once, overlaps it by an IoU of at least 0.5; it is located when one of any
    class does. These counts show where a detector fails.

    Average precision follows from the detections as COCO's evaluation matched them, which
    `CocoMetric`, listed before, has just done: see `coco_matches`.

    Args:
        file: The `.npz` written; also holds `sample_id` [S], the images' ids in the COCO file.
        min_score: Detections below count nowhere.
        collect_device: mmengine's.
    """

    def __init__(self, file: str, min_score: float = 0.05, collect_device: str = "cpu") -> None:
        super().__init__(file, collect_device)
        self.min_score = min_score
        _keep_evaluations()

    def more_arrays(self, results: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """`coco_matches` of boxes and of masks."""
        names = [str(result["sample_id"]) for result in results]
        arrays = {}
        for kind, evaluation in _evaluations.items():
            for name, array in coco_matches(evaluation, names).items():
                arrays[f"{kind}_{name}"] = array
        _evaluations.clear()
        return arrays

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the objects of a batch."""
        num_classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            found = sample["pred_instances"]
            keep = found["scores"] >= self.min_score
            boxes, classes = found["bboxes"][keep].cpu(), found["labels"][keep].cpu()
            order = found["scores"][keep].cpu().argsort(descending=True, stable=True)
            if "instances" not in sample:
                raise ValueError(
                    "DetectionOutcomes needs the objects of each image. Add 'instances' to the "
                    "meta_keys of PackDetInputs in the config's test pipeline."
                )
            objects = [item for item in sample["instances"] if not item.get("ignore_flag", 0)]
            object_boxes = torch.tensor(
                [item["bbox"] for item in objects], dtype=boxes.dtype
            ).reshape(-1, 4)
            object_classes = torch.tensor(
                [item["bbox_label"] for item in objects], dtype=torch.long
            )
            boxes, classes = boxes[order], classes[order]
            hit = match_objects(boxes, classes, object_boxes, object_classes)
            located = match_objects(
                boxes, torch.zeros_like(classes), object_boxes, torch.zeros_like(object_classes)
            )
            self.results.append(
                {
                    "sample_id": np.asarray(str(sample["img_id"])),
                    "num_objects": _counts(object_classes, num_classes),
                    "num_found": _counts(object_classes[hit], num_classes),
                    "num_located": _counts(object_classes[located], num_classes),
                    "num_detections": _counts(classes, num_classes),
                }
            )


def match_objects(
    boxes: Tensor, classes: Tensor, object_boxes: Tensor, object_classes: Tensor
) -> Tensor:
    """Which objects [O] are found by detections [K] (best first) of their class at IoU 0.5.

    Args:
        boxes: [K, 4].
        classes: [K].
        object_boxes: [O, 4].
        object_classes: [O].
    """
    hit = torch.zeros(len(object_boxes), dtype=torch.bool)
    overlap = box_iou(boxes, object_boxes)  # [K, O]
    overlap[classes[:, None] != object_classes[None]] = 0
    for row in overlap:
        row = row.masked_fill(hit, 0)
        if len(row) and row.max() >= 0.5:
            hit[int(row.argmax())] = True
    return hit


def _counts(classes: Tensor, num_classes: int) -> np.ndarray:
    return torch.bincount(classes.long(), minlength=num_classes).numpy()


_evaluations: dict[str, Any] = {}
"""What was compared ("bbox", "segm") -> the evaluation that `CocoMetric` ran last."""


def _keep_evaluations() -> None:
    """Let `CocoMetric`, which is listed before and so imported, leave its evaluation behind."""
    coco_metric = sys.modules.get("mmdet.evaluation.metrics.coco_metric")
    if coco_metric is None:
        return
    original = coco_metric.COCOeval
    if hasattr(original, "is_kept"):
        return

    class KeptEvaluation(original):
        is_kept = True

        def evaluate(self) -> None:
            super().evaluate()
            _evaluations[self.params.iouType] = self

    coco_metric.COCOeval = KeptEvaluation


def coco_matches(evaluation: Any, sample_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Detections and objects of an evaluated `COCOeval`, over all sizes of objects and of each.

    D detections, at most 100 an image and class, class by class, in the order of the images' ids
    within a class, best first within an image; S images, C classes.

    Returns:
        `images` int32 [D] (index in `sample_ids`), `classes` int16 [D], `scores` float64 [D];
        `hits` uint16 [D], bit t set where the detection is right at the t-th IoU threshold, and
        `ignored`, likewise, where it counts neither way; `objects` int32 [S, C], those to be found.
        The last three also for each size, with `small_`, `medium_`, `large_` before their names.
        Nothing where the IoU thresholds are not COCO's.
    """
    settings = evaluation.params
    if not np.array_equal(np.round(settings.iouThrs, 6), COCO_THRESHOLDS):
        return {}
    arrays: dict[str, np.ndarray] = {}
    for label, bounds in zip(settings.areaRngLbl, settings.areaRng, strict=True):
        size = "" if label == "all" else label
        found = [f for f in evaluation.evalImgs if f and list(f["aRng"]) == list(bounds)]
        of_size = _matches_of_size(found, settings.catIds, sample_ids)
        if size:
            of_size = {f"{size}_{name}": of_size[name] for name in ("hits", "ignored", "objects")}
        arrays |= of_size
    return arrays


def _matches_of_size(
    evaluated: Sequence[Any], categories: Sequence[int], sample_ids: Sequence[str]
) -> dict[str, np.ndarray]:
    """See `coco_matches`; of the entries of `evalImgs` of one size."""
    image_of = {name: index for index, name in enumerate(sample_ids)}
    class_of = {category: index for index, category in enumerate(categories)}
    objects = np.zeros((len(sample_ids), len(class_of)), np.int32)
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in ("images", "classes", "scores", "hits", "ignored")
    }
    bits = 1 << np.arange(len(COCO_THRESHOLDS))[:, None]  # [T, 1]
    for found in evaluated:
        image, label = image_of[str(found["image_id"])], class_of[found["category_id"]]
        objects[image, label] += int((np.asarray(found["gtIgnore"]) == 0).sum())
        scores = np.asarray(found["dtScores"], np.float64)[:MAX_DETECTIONS]
        ignored = np.asarray(found["dtIgnore"], bool)[:, :MAX_DETECTIONS]  # [T, D]
        hits = (np.asarray(found["dtMatches"])[:, :MAX_DETECTIONS] != 0) & ~ignored
        parts["images"].append(np.full(len(scores), image, np.int32))
        parts["classes"].append(np.full(len(scores), label, np.int16))
        parts["scores"].append(scores)
        parts["hits"].append((hits * bits).sum(0).astype(np.uint16))
        parts["ignored"].append((ignored * bits).sum(0).astype(np.uint16))
    types = {"images": np.int32, "classes": np.int16, "scores": np.float64}
    joined = {
        name: np.concatenate(arrays or [np.zeros(0)]).astype(types.get(name, np.uint16))
        for name, arrays in parts.items()
    }
    return {**joined, "objects": objects}
