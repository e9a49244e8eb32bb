"""Detections for the tests of AP: matched by pycocotools, or drawn as matched already."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pandas as pd


def coco_of(
    random: np.random.Generator, num_images: int, *, digits: int = 1
) -> tuple[dict[str, Any], list[Any]]:
    """Random objects, crowds among them, and detections near and far; few digits = ties."""
    images = [{"id": 7 * index + 3, "width": 200, "height": 200} for index in range(num_images)]
    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in images:
        for _ in range(int(random.integers(0, 5))):
            box = [*random.uniform(0, 60, 2), *random.uniform(8, 130, 2)]
            label = int(random.integers(1, 4))
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image["id"],
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(random.random() < 0.15),
                }
            )
            for _ in range(int(random.integers(0, 4))):
                moved = (np.array(box) + random.normal(0, 2.5, 4)).clip(1).tolist()
                score = round(float(random.random()), digits)
                kind = label if random.random() < 0.8 else int(random.integers(1, 4))
                found.append(
                    {"image_id": image["id"], "category_id": kind, "bbox": moved, "score": score}
                )
    categories = [{"id": label, "name": str(label)} for label in (1, 2, 3, 4)]
    return {"images": images, "annotations": objects, "categories": categories}, found


def evaluated(content: dict[str, Any], found: list[Any]) -> Any:
    """pycocotools' evaluation of boxes, with its `stats`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def matched_table(evaluation: Any, content: dict[str, Any]) -> pd.DataFrame:
    """The outcome columns of `box_ap` of an evaluation, as the detection protocol keeps them."""
    from maskclip_bench.backbones.openmmlab.evaluation import coco_matches
    from maskclip_bench.tasks.dense_outcomes import SplitResult, match_columns, sample_names

    names = [str(image["id"]) for image in content["images"]]
    arrays = {f"bbox_{key}": value for key, value in coco_matches(evaluation, names).items()}
    part = SplitResult("", "val", {}, {"sample_id": np.array(names), **arrays})
    ids = sample_names([part])
    return pd.DataFrame({"sample_id": ids, "group": ids, **match_columns([part])})


def drawn_detections(
    random: np.random.Generator,
    num_images: int,
    *,
    num_classes: int = 3,
    recall: float = 0.7,
    wrong: float = 1.5,
    metric: str = "box_ap",
) -> pd.DataFrame:
    """Outcome columns of a detector: `recall` of the objects found, `wrong` boxes an image.

    A right box is right up to a threshold drawn evenly; right ones score higher than wrong ones by
    about one standard deviation. Images differ in how hard they are.
    """
    rows = []
    for _ in range(num_images):
        objects = random.poisson(1.2, num_classes)
        ease = random.beta(8 * recall, 8 * (1 - recall))
        scores: list[float] = []
        classes: list[int] = []
        hits: list[int] = []
        for label, number in enumerate(objects):
            found = int(random.binomial(number, ease))
            classes += [label] * found
            scores += (random.normal(size=found) + 1).tolist()
            hits += [(1 << int(random.integers(1, 11))) - 1 for _ in range(found)]
        for _ in range(int(random.poisson(wrong))):
            classes.append(int(random.integers(num_classes)))
            scores.append(float(random.normal()))
            hits.append(0)
        rows.append((scores, classes, hits, [0] * len(hits), objects.tolist()))
    ids = [f"val/{index}" for index in range(num_images)]
    parts = ("scores", "classes", "hits", "ignored", "objects")
    columns = {f"{metric}.{part}": [row[place] for row in rows] for place, part in enumerate(parts)}
    return pd.DataFrame({"sample_id": ids, "group": ids, **columns})
