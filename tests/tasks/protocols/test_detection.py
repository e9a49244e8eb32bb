"""Detection as a job on a small demo world, mmdet's scores in our words, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from maskclip_bench.backbones.dense_job import DenseFolder
from maskclip_bench.errors import DataError
from maskclip_bench.results.intervals import metric_interval
from maskclip_bench.results.measurement import Metric
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import dense_jobs
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.dense_outcomes import SplitResult, match_columns
from maskclip_bench.tasks.protocols.base import ProtocolContext
from maskclip_bench.tasks.protocols.detection import Detection, ap_metric, average_precisions
from tests.tasks.protocols.dense_world import dense_context

CONFIG = "configs/mmdet/demo/vit-demo_frozen-mask-rcnn_1xb4-600_demo-instances-144x144.py"
TASK = TaskDeclaration(
    name="small_instances",
    display_name="Small instances",
    world="demo",
    reader={"kind": "coco_instances", "root": "demo/instances"},
    splits={"train": "train", "test": "val"},
    protocols={
        "detection": {
            "configs": {"*": CONFIG},
            "preset": "demo_frozen_mask_rcnn",
            "options": {"train_cfg.max_iters": 5, "default_hooks.checkpoint.interval": 5},
        }
    },
    obtain="-",
)


def context(root: Path) -> ProtocolContext:
    return dense_context(root, "detection", TASK)


def test_run__record_holds_the_toolboxes_numbers(world: Path) -> None:
    pytest.importorskip("mmdet")
    measurement = Detection().run(context(world))
    (folder,) = (world / "jobs" / "random").glob("detection__*")
    scores = json.loads((folder / "scores_val.json").read_text())
    log = (folder / "job.log").read_text()
    assert f"coco/bbox_mAP: {scores['coco/bbox_mAP']:.4f}" in log
    for name, theirs in average_precisions(scores).items():
        metric = measurement.metrics[name]
        assert metric.value == pytest.approx(theirs, abs=6e-4), name
        assert metric.statistic.startswith("coco_ap"), name
        found = metric_interval(measurement.outcomes, name, metric.statistic, metric.columns)
        assert found is not None and found.low <= metric.value <= found.high, name
        assert found.num_samples == 6
    assert measurement.metrics["object_recall"].statistic == "mean_ratio"
    located = measurement.metrics["localization_recall"].value
    assert located >= measurement.metrics["object_recall"].value
    assert len(measurement.outcomes) == 6
    annotations = json.loads(
        (world / "data/demo/instances/annotations/instances_val.json").read_text()
    )
    counted = sum(sum(row) for row in measurement.outcomes["object_recall.denominator"])
    assert counted == len(annotations["annotations"])


def test_run__annotations_that_name_absent_images(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "data/demo/instances", tmp_path / "data/demo/instances")
    next((tmp_path / "data/demo/instances/val").glob("*.jpg")).unlink()
    with pytest.raises(DataError, match=r"names 1 of 6 images that are not in .*, e\.g\. 0000"):
        Detection().run(context(tmp_path))


def test_run__broken_annotations(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "data/demo/instances", tmp_path / "data/demo/instances")
    file = tmp_path / "data/demo/instances/annotations/instances_train.json"
    file.write_text("{")
    with pytest.raises(DataError, match=r"instances_train\.json is (not valid JSON|no COCO)"):
        Detection().run(context(tmp_path))
    file.write_text('{"images": []}')
    with pytest.raises(DataError, match=r"is no COCO instances? file"):
        Detection().run(context(tmp_path))
    file.unlink()
    with pytest.raises(DataError, match=r"(?i)no (annotation )?file .*instances_train\.json"):
        Detection().run(context(tmp_path))


@pytest.mark.parametrize(("split", "what"), [("train", "learned"), ("val", "scored")])
def test_run__split_without_objects(world: Path, tmp_path: Path, split: str, what: str) -> None:
    shutil.copytree(world / "data/demo/instances", tmp_path / "data/demo/instances")
    file = tmp_path / f"data/demo/instances/annotations/instances_{split}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    with pytest.raises(DataError, match=rf"instances_{split}\.json has no objects.* be {what}\. "):
        Detection().run(context(tmp_path))


def test_split__categories_in_another_order(world: Path, tmp_path: Path) -> None:
    """The job gets a copy in the order of the labels, the training file's."""
    shutil.copytree(world / "data/demo/instances", tmp_path / "data/demo/instances")
    root = tmp_path / "data/demo/instances"
    train, file = (root / f"annotations/instances_{split}.json" for split in ("train", "val"))
    content = json.loads(file.read_text())
    used = {entry["category_id"] for entry in content["annotations"]}
    unused = next(c["id"] for c in content["categories"] if c["id"] not in used)
    content["categories"] = [c for c in content["categories"][::-1] if c["id"] != unused]
    file.write_text(json.dumps(content))
    dataset = Detection().open(TASK, "val", Workspace(root=tmp_path, data=tmp_path / "data"))
    split = Detection().split(dataset, root, DenseFolder(tmp_path))
    assert split.annotations == str(tmp_path / "annotations_val.json")
    written = json.loads(Path(split.annotations).read_text())
    order = json.loads(train.read_text())["categories"]
    assert [c["id"] for c in written["categories"]] == [c["id"] for c in order]
    assert written["annotations"] == content["annotations"]


def test_average_precisions__sizes_without_objects_are_left_out() -> None:
    scores = {
        "coco/bbox_mAP": 0.25,
        "coco/bbox_mAP_50": 0.5,
        "coco/bbox_mAP_s": -1.0,
        "coco/segm_mAP": 0.2,
        "coco/segm_mAP_l": 0.0,
    }
    assert average_precisions(scores) == {
        "box_ap": 0.25,
        "box_ap50": 0.5,
        "mask_ap": 0.2,
        "mask_ap_large": 0.0,
    }


def test_average_precisions__without_any_detection() -> None:
    """mmdet ends its evaluation without a word on AP when no image has a detection."""
    expected = {f"{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50", "ap75")}
    assert average_precisions({}, has_objects=True) == dict.fromkeys(expected, 0.0)
    assert average_precisions({}, has_objects=False) == {}
    boxes_only = average_precisions({"coco/bbox_mAP": 0.1}, has_objects=True)
    assert set(boxes_only) == {"box_ap"}


def write_results(
    self: Detection, context: ProtocolContext, folder: DenseFolder, *given: Any
) -> dict[str, Any]:
    """In place of a job: two images with three classes, of which nothing is found."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.scores("val").write_text("{}")
    nothing = np.zeros((2, 3), np.int64)
    np.savez(
        folder.outcomes("val"),
        sample_id=np.array(["0", "1"]),
        num_objects=nothing + 1,
        num_found=nothing,
        num_located=nothing,
    )
    return {}


def test_run__detector_that_finds_nothing_has_ap_0(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_jobs, "missing_packages", lambda toolbox: [])
    monkeypatch.setattr(Detection, "_run", write_results)
    measurement = Detection().run(context(world))
    assert measurement.metrics["box_ap"].value == 0.0
    assert measurement.metrics["mask_ap"].value == 0.0
    assert measurement.metrics["mask_ap"].statistic == "coco_ap"
    found = metric_interval(measurement.outcomes, "box_ap", "coco_ap", ("box_ap", "box_ap"))
    assert found is not None and found.low == 0.0 and found.high > 0.3
    assert measurement.metrics["object_recall"].value == 0.0


def test_run__what_the_folder_holds_beyond_the_split_is_recorded(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world / "data/demo/instances", tmp_path / "data/demo/instances")
    (tmp_path / "data/demo/instances/val/notes.txt").write_text("a note")
    monkeypatch.setattr(dense_jobs, "missing_packages", lambda toolbox: [])
    monkeypatch.setattr(Detection, "_run", write_results)
    details = Detection().run(context(tmp_path)).details
    assert list(details["left_over"]) == ["val"]
    assert "notes.txt" in str(details["left_over"]["val"])


def matched(objects: int) -> dict[str, np.ndarray]:
    """One image with one right box, at all thresholds, of `objects` of one class."""
    every = (1 << 10) - 1
    lists = {"images": [0], "classes": [0], "scores": [0.9], "hits": [every], "ignored": [0]}
    arrays = {f"bbox_{name}": np.array(values) for name, values in lists.items()}
    return {"sample_id": np.array(["7"]), **arrays, "bbox_objects": np.array([[objects]])}


def test_ap_metric__each_split_by_itself_and_held_against_the_toolbox() -> None:
    splits = [SplitResult("", "val", {}, matched(1)), SplitResult("ood", "far", {}, matched(2))]
    columns = match_columns(splits)
    assert columns["box_ap.objects"] == [[1], None]
    assert columns["box_ap_ood.scores"] == [None, [0.9]]
    names = ["val/7", "far/7"]
    outcomes = pd.DataFrame({"sample_id": names, "group": names, **columns})
    assert ap_metric("box_ap", 1.0, splits[0], outcomes).value == 1.0
    ood = ap_metric("box_ap75", 0.505, splits[1], outcomes)
    assert (ood.value, ood.statistic) == (pytest.approx(51 / 101), "coco_ap75")
    assert ood.columns == ("box_ap_ood", "box_ap_ood")
    with pytest.raises(DataError, match=r"box_ap on val: the outcomes give 1\.0+ and .* 0\.9"):
        ap_metric("box_ap", 0.9, splits[0], outcomes)
    # A job of before stored no matches by size: mmdet's number, without an interval.
    assert ap_metric("box_ap_small", 0.123, splits[0], outcomes) == Metric(0.123, statistic="none")
