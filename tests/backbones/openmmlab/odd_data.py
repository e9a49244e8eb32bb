"""Toy data with what real sets hold: tiny and thin images, grey ones, palettes, crowds, gaps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from PIL import Image

from .conftest import CLASSES

SIZES = ((64, 48), (9, 40), (7, 5), (33, 3), (150, 20), (50, 50))
"""(width, height); the crop of the tests is 48 x 48."""


def picture(index: int, folder: Path, name: str) -> tuple[str, int, int]:
    """Write an image -> its file name, width, height; every second one is a grey JPEG."""
    width, height = SIZES[index % len(SIZES)]
    generator = np.random.default_rng(index)
    pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    file = f"{name}.jpg" if index % 3 else f"{name}.png"
    (image.convert("L") if index % 2 else image).save(folder / file)
    return file, width, height


def write_odd_scenes(root: Path) -> Path:
    """ADE20K's layout; masks are palettes with 0 and 255, one of them without any label."""
    for split, count, offset in (("training", 8, 0), ("validation", 6, 100)):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for index in range(count):
            name = f"{index}.a b"
            _, width, height = picture(index + offset, root / "images" / split, name)
            labels = np.random.default_rng(index).choice([0, 1, 2, 3, 255], (height, width))
            if index == 2:
                labels[:] = 255
            mask = Image.fromarray(labels.astype(np.uint8), mode="P")
            mask.putpalette([value for value in range(256) for _ in range(3)])
            mask.save(root / "annotations" / split / f"{name}.png")
    (root / "classes.json").write_text(json.dumps([{"name": name} for name in CLASSES]))
    return root


def write_odd_instances(root: Path) -> Path:
    """COCO's layout: ids with gaps, boxes of one pixel, crowds, images without objects."""
    (root / "annotations").mkdir(parents=True)
    for split, count, offset in (("train", 8, 0), ("val", 6, 100)):
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for index in range(count):
            file, width, height = picture(index + offset, root / split, f"{index:03d}")
            number = 5 + 17 * index
            images.append({"id": number, "file_name": file, "width": width, "height": height})
            if index == 1:
                continue  # without objects
            for kind, box in enumerate(
                ([0, 0, width, height], [width - 1, height - 1, 1, 1], [0.0, 0.0, 2.5, 2.5])
            ):
                x, y, w, h = box
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                objects.append(
                    {
                        "id": 3 + 5 * len(objects),
                        "image_id": number,
                        "category_id": (7, 90)[kind % 2],
                        "bbox": box,
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [outline],
                    }
                )
            for packed in (True, False)[: index % 3]:
                objects.append(crowd(number, width, height, 3 + 5 * len(objects), packed=packed))
        categories = [{"id": 90, "name": CLASSES[2]}, {"id": 7, "name": CLASSES[1]}]
        file = root / "annotations" / f"instances_{split}.json"
        content = {"images": images, "annotations": objects, "categories": categories}
        file.write_text(json.dumps(content))
    return root


def crowd(image: int, width: int, height: int, number: int, *, packed: bool) -> dict[str, Any]:
    """A crowd over the upper half: its mask as runs, or as COCO packs them into text."""
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2] = 1
    if packed:
        runs = pycocotools.mask.encode(np.asfortranarray(mask))
        segmentation = {"size": runs["size"], "counts": runs["counts"].decode()}
    else:
        column = [height // 2, height - height // 2]
        segmentation = {"size": [height, width], "counts": [0, *(column * width)]}
    return {
        "id": number,
        "image_id": image,
        "category_id": 7,
        "bbox": [0, 0, width, max(height // 2, 1)],
        "area": width * max(height // 2, 1),
        "iscrowd": 1,
        "segmentation": segmentation,
    }


SEGMENTATION = """
_base_ = "{base}"

crop = (48, 48)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=(96, 48), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 48), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
model = dict(
    data_preprocessor=dict(size=crop, test_cfg=dict(_delete_=True, size=crop)),
    decode_head=dict(num_classes=3, loss_decode=dict(class_weight=[1.0, 1.0, 1.0])),
    test_cfg=dict(_delete_=True, mode="slide", crop_size=crop, stride=(32, 32)),
)
train_dataloader = dict(batch_size=2, dataset=dict(num_classes=3, pipeline=train_pipeline))
val_dataloader = dict(batch_size=1, dataset=dict(num_classes=3, pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=3, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))
global_batch_size = 4
"""

DETECTION = """
_base_ = "{base}"

size = (96, 96)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_type="absolute_range",
        crop_size=size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2)),
)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        num_classes=2, pipeline=train_pipeline, filter_cfg=dict(filter_empty_gt=False)
    ),
)
val_dataloader = dict(batch_size=2, dataset=dict(num_classes=2))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=3, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))
global_batch_size = 4
"""
