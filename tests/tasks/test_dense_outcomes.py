"""AP from matched detections, against pycocotools; and the columns that keep them."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from maskclip_bench.tasks.dense_outcomes import SplitResult, average_precision, match_columns


def coco_of(generator: np.random.Generator, num_images: int) -> tuple[dict[str, Any], list[Any]]:
    """Random objects, crowds among them, and detections near and far, with ties in score."""
    images = [{"id": 7 * index + 3, "width": 100, "height": 100} for index in range(num_images)]
    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in images:
        for _ in range(int(generator.integers(0, 5))):
            box = [*generator.uniform(0, 60, 2), *generator.uniform(8, 40, 2)]
            label = int(generator.integers(1, 4))
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image["id"],
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(generator.random() < 0.15),
                }
            )
            for _ in range(int(generator.integers(0, 4))):
                moved = (np.array(box) + generator.normal(0, 2.5, 4)).clip(1).tolist()
                score = round(float(generator.random()), 1)
                kind = label if generator.random() < 0.8 else int(generator.integers(1, 4))
                found.append(
                    {"image_id": image["id"], "category_id": kind, "bbox": moved, "score": score}
                )
    categories = [{"id": label, "name": str(label)} for label in (1, 2, 3, 4)]
    return {"images": images, "annotations": objects, "categories": categories}, found


@pytest.mark.parametrize("seed", range(5))
def test_average_precision__is_pycocotools(seed: int) -> None:
    pytest.importorskip("mmengine")
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    from maskclip_bench.backbones.openmmlab.evaluation import coco_matches

    content, found = coco_of(np.random.default_rng(seed), num_images=12)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_module.COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = [str(image["id"]) for image in content["images"]]
    arrays = coco_matches(evaluation, names)
    parts = [arrays[name] for name in ("scores", "classes", "hits", "ignored")]
    value = average_precision(*parts, arrays["objects"].sum(0))
    assert value == pytest.approx(evaluation.stats[0], abs=1e-9)

    # The columns of the table hold the same, image by image.
    split = SplitResult(
        "", "val", {}, {"sample_id": np.array(names), **{f"bbox_{k}": v for k, v in arrays.items()}}
    )
    columns = match_columns([split], "box_ap", "bbox")
    assert {len(column) for column in columns.values()} == {12}
    joined = [
        np.concatenate([np.asarray(row) for row in columns[f"box_ap.{name}"]])
        for name in ("scores", "classes", "hits", "ignored")
    ]
    objects = np.sum(columns["box_ap.objects"], axis=0)
    types = (np.float64, np.int64, np.int64, np.int64)
    again = average_precision(*(a.astype(t) for a, t in zip(joined, types, strict=True)), objects)
    # Detections of equal scores are in the order of the images there, too.
    assert again == pytest.approx(value, abs=1e-9)
    assert match_columns([split], "mask_ap", "segm") == {}


def test_average_precision__by_hand() -> None:
    """Of two objects one is found, at all thresholds, then comes a wrong box: half the recall."""
    every = (1 << 10) - 1
    hits, one_class = np.array([every, 0]), np.array([0, 0])
    value = average_precision(
        np.array([0.9, 0.5]), one_class, hits, np.array([0, 0]), np.array([2])
    )
    assert value == pytest.approx(51 / 101)
    nothing = np.zeros(0, np.int64)
    assert average_precision(nothing * 1.0, nothing, nothing, nothing, np.array([3])) == 0.0
    assert np.isnan(average_precision(nothing * 1.0, nothing, nothing, nothing, np.array([0])))
