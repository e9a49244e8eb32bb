from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskclip_bench.backbones.openmmlab.evaluation import (
    DetectionOutcomes,
    SegmentationOutcomes,
    match_objects,
)

OBJECTS = [
    {"bbox": [0, 0, 10, 10], "bbox_label": 0},
    {"bbox": [20, 20, 30, 30], "bbox_label": 1},
    {"bbox": [0, 0, 5, 5], "bbox_label": 1, "ignore_flag": 1},
]


def detection_sample(**changes: object) -> dict:
    found = {
        "bboxes": torch.tensor([[0.0, 0, 10, 9], [20, 20, 30, 29], [0, 0, 10, 10]]),
        "scores": torch.tensor([0.9, 0.8, 0.01]),
        "labels": torch.tensor([0, 0, 0]),
    }
    return {"pred_instances": found, "img_id": 7, "instances": OBJECTS, **changes}


def test_match_objects__best_first_and_each_once() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]])
    classes = torch.zeros(2, dtype=torch.long)
    assert match_objects(boxes, classes, objects, classes).tolist() == [True, True]
    assert match_objects(boxes[:1], classes[:1], objects, classes).tolist() == [True, False]
    assert match_objects(boxes, classes, objects, classes + 1).tolist() == [False, False]
    assert match_objects(boxes[:0], classes[:0], objects, classes).tolist() == [False, False]


def test_detection_outcomes__counts_of_an_image(tmp_path: Path) -> None:
    metric = DetectionOutcomes(str(tmp_path / "outcomes.npz"))
    metric.dataset_meta = {"classes": ("a", "b")}
    metric.process(None, [detection_sample()])
    assert metric.evaluate(1) == {}
    with np.load(tmp_path / "outcomes.npz", allow_pickle=False) as file:
        counts = {name: file[name].tolist() for name in file.files}
    assert counts == {
        "sample_id": ["7"],
        "num_objects": [[1, 1]],
        "num_found": [[1, 0]],
        "num_located": [[1, 1]],
        "num_detections": [[2, 0]],
    }


def test_detection_outcomes__needs_the_objects(tmp_path: Path) -> None:
    metric = DetectionOutcomes(str(tmp_path / "outcomes.npz"))
    metric.dataset_meta = {"classes": ("a", "b")}
    sample = detection_sample()
    del sample["instances"]
    with pytest.raises(ValueError, match="Add 'instances' to the meta_keys"):
        metric.process(None, [sample])


def test_segmentation_outcomes__counts_of_an_image(tmp_path: Path) -> None:
    metric = SegmentationOutcomes(str(tmp_path / "outcomes.npz"))
    metric.dataset_meta = {"classes": ("a", "b")}
    sample = {
        "pred_sem_seg": {"data": torch.tensor([[[0, 1], [1, 1]]])},
        "gt_sem_seg": {"data": torch.tensor([[[0, 0], [1, 255]]])},
        "img_path": "/somewhere/x.jpg",
    }
    metric.process(None, [sample])
    metric.evaluate(1)
    with np.load(tmp_path / "outcomes.npz", allow_pickle=False) as file:
        assert file["sample_id"].tolist() == ["x.jpg"]
        assert file["intersection"].tolist() == [[1, 1]]
        assert file["predicted"].tolist() == [[1, 2]]
        assert file["labelled"].tolist() == [[2, 1]]


@pytest.mark.parametrize("given", [True, False])
def test_segmentation__ids_hold_their_folder(tmp_path: Path, given: bool) -> None:
    """Equal names in two folders are two samples, with the ids of the other protocols."""
    images = tmp_path / "images"
    metric = SegmentationOutcomes(str(tmp_path / "o.npz"), images=str(images) if given else None)
    metric.dataset_meta = {"classes": ("a", "b")}
    labels = {"data": torch.zeros(1, 4, 4, dtype=torch.long)}
    for folder in ("aachen", "bochum"):
        path = str(images / folder / "0001.jpg")
        metric.process(None, [{"img_path": path, "pred_sem_seg": labels, "gt_sem_seg": labels}])
    metric.compute_metrics(metric.results)
    with np.load(tmp_path / "o.npz") as arrays:
        assert arrays["sample_id"].tolist() == ["aachen/0001.jpg", "bochum/0001.jpg"]
