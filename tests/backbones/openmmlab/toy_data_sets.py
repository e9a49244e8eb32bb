"""A few drawn images as ADE20K, VOC, Pascal Context, COCO-Stuff, Cityscapes, COCO and LVIS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TRAIN, TEST = 10, 2
"""Images; at two a step, training has five steps an epoch."""


def _images(number: int, first: int) -> Iterator[tuple[str, np.ndarray]]:
    for index in range(first, first + number):
        size = (40 + 3 * index, 90 - 4 * index)  # height, width
        generator = np.random.default_rng(index)
        yield f"{index:04d}", generator.integers(0, 255, (*size, 3), dtype=np.uint8)


def _scenes(
    images: Path,
    masks: Path,
    number: int,
    *,
    values: range,
    first: int = 0,
    suffixes: tuple[str, str] = (".jpg", ".png"),
) -> list[str]:
    """Images and masks of stripes; the last value is 255."""
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    names = []
    for name, pixels in _images(number, first):
        Image.fromarray(pixels).save(images / f"{name}{suffixes[0]}")
        stripes = [*np.linspace(values[0], values[-1], 5).astype(int), 255]
        labels = np.array(stripes, np.uint8)[np.arange(pixels.shape[1]) * 6 // pixels.shape[1]]
        mask = Image.fromarray(np.repeat(labels[None], len(pixels), axis=0))
        mask.save(masks / f"{name}{suffixes[1]}")
        names.append(name)
    return names


def write_ade20k(root: Path) -> None:
    folder = root / "ADEChallengeData2016"
    for split, number in (("training", TRAIN), ("validation", TEST)):
        images, masks = folder / "images" / split, folder / "annotations" / split
        _scenes(images, masks, number, values=range(151))


def write_voc2012(root: Path) -> None:
    folder = root / "VOCdevkit/VOC2012"
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, masks, number, first in (
        ("trainaug", "SegmentationClassAug", TRAIN, 0), ("val", "SegmentationClass", TEST, 10),
    ):  # fmt: skip
        names = _scenes(
            folder / "JPEGImages", folder / masks, number, values=range(21), first=first
        )
        (lists / f"{name}.txt").write_text("\n".join(names))


def write_pascal_context(root: Path) -> None:
    folder = root / "VOCdevkit/VOC2010"
    lists = folder / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    masks = folder / "SegmentationClassContext"
    for name, number, first in (("train", TRAIN, 0), ("val", TEST, 10)):
        names = _scenes(folder / "JPEGImages", masks, number, values=range(60), first=first)
        (lists / f"{name}.txt").write_text("\n".join(names))


def write_coco_stuff(root: Path) -> None:
    folder = root / "coco_stuff164k"
    for split, number in (("train2017", TRAIN), ("val2017", TEST)):
        _scenes(
            folder / "images" / split, folder / "annotations" / split, number, values=range(171),
            suffixes=(".jpg", "_labelTrainIds.png"),
        )  # fmt: skip


def write_cityscapes(root: Path) -> None:
    folder = root / "cityscapes"
    for split, number in (("train", TRAIN), ("val", TEST)):
        _scenes(
            folder / "leftImg8bit" / split, folder / "gtFine" / split, number, values=range(19),
            suffixes=("_leftImg8bit.png", "_gtFine_labelTrainIds.png"),
        )  # fmt: skip


def write_coco(root: Path, classes: tuple[str, ...], *, lvis: bool = False) -> None:
    folder = root / ("lvis_v1" if lvis else "coco")
    (folder / "annotations").mkdir(parents=True)
    for split, number in (("train", TRAIN), ("val", TEST)):
        (folder / f"{split}2017").mkdir()
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for name, pixels in _images(number, 0):
            height, width = pixels.shape[:2]
            file = f"{name}.jpg"
            Image.fromarray(pixels).save(folder / f"{split}2017" / file)
            image: dict[str, Any] = {"id": len(images) + 1, "width": width, "height": height}
            image |= (
                {
                    "coco_url": f"http://images.cocodataset.org/{split}2017/{file}",
                    "neg_category_ids": [],
                    "not_exhaustive_category_ids": [],
                }
                if lvis
                else {"file_name": file}
            )
            images.append(image)
            for kind in range(2):
                x, y, w, h = 2 + 10 * kind, 3, width // 3, height // 2
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "image_id": image["id"],
                        "category_id": 1 + (len(objects) % len(classes)),
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        categories = [
            {"id": 1 + index, "name": name, "frequency": "f", "image_count": 1}
            for index, name in enumerate(classes)
        ]
        name = f"lvis_v1_{split}" if lvis else f"instances_{split}2017"
        content = {"images": images, "annotations": objects, "categories": categories}
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))
