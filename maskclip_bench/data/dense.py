"""Segmentation masks and COCO files: checks before a long job starts on them, and pixel counts.

The checks read directory listings, image headers and the annotation file, no pixels: seconds for
ADE20K and COCO.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from maskclip_bench.errors import DataError

UNLABELLED = 255
"""Label of pixels that count nowhere, after ADE20K's 0 (unlabelled) was moved out of the way."""

_SHOWN = 3


def check_segmentation_folder(
    images: Path, masks: Path, *, image_suffix: str = ".jpg", mask_suffix: str = ".png"
) -> int:
    """Hold a folder of images against its masks -> number of pairs.

    Raises:
        DataError: A folder is missing or empty, an image has no mask, or a mask another size.
    """
    for folder, what in ((images, "images"), (masks, "masks")):
        if not folder.is_dir():
            raise DataError(
                f"No folder {folder} of {what}. Set MASKCLIP_BENCH_DATA (or the config's "
                "data_root) to the place of the data; ADE20K unpacks to ADEChallengeData2016/ "
                "with images/{training,validation} and annotations/{training,validation}."
            )
    pairs = [
        (path, masks / path.relative_to(images).with_suffix(mask_suffix))
        for path in sorted(images.rglob(f"*{image_suffix}"))
    ]
    if not pairs:
        raise DataError(f"{images} holds no *{image_suffix}. Unpack the data set again.")
    absent = [mask.name for _, mask in pairs if not mask.is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(pairs)} images in {images} have no mask in {masks}, e.g. "
            f"{_examples(absent)}. Unpack the annotations again."
        )
    wrong = [
        f"{mask.name} ({mask_size[0]} x {mask_size[1]}, image {size[0]} x {size[1]})"
        for path, mask in pairs
        if (size := image_size(path)) != (mask_size := image_size(mask))
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(pairs)} masks in {masks} are not of their image's size, e.g. "
            f"{_examples(wrong)}. Images and masks are of different releases, or were resized."
        )
    return len(pairs)


def check_coco(annotations: Path, images: Path) -> int:
    """Hold a COCO annotation file against a folder of images -> number of images.

    Raises:
        DataError: A file or folder is missing, the JSON is broken or names absent images.
    """
    content = read_coco(annotations)
    if not images.is_dir():
        raise DataError(
            f"No folder {images} of images, which {annotations} describes. Set "
            "MASKCLIP_BENCH_DATA (or the config's data_root) to the place of the data; COCO "
            "unpacks to coco/{train2017,val2017,annotations}."
        )
    there = {path.relative_to(images).as_posix() for path in images.rglob("*.*")}
    absent = [str(item["file_name"]) for item in content["images"]]
    absent = [name for name in absent if name not in there]
    if absent:
        raise DataError(
            f"{annotations} names {len(absent)} of {len(content['images'])} images that are not "
            f"in {images}, e.g. {_examples(absent)}. Unpack the images again, or give the "
            "annotation file of this split."
        )
    return len(content["images"])


def read_coco(annotations: Path) -> dict[str, Any]:
    """A COCO instances file with its three lists.

    Raises:
        DataError: It is missing, broken, empty, or no instances file.
    """
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"No annotation file {annotations}. Set MASKCLIP_BENCH_DATA (or the config's "
            "data_root) to the place of the data."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{annotations} is not valid JSON ({error}). Download it again.") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not content.get(key) for key in lists):
        raise DataError(
            f"{annotations} is no COCO instances file: it needs non-empty lists {', '.join(lists)}."
        )
    return content


def image_size(path: Path) -> tuple[int, int]:
    """Width and height from an image's header.

    Raises:
        DataError: It is no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is no readable image: {error}. Unpack it again.") from error


def read_mask(path: Path, *, num_classes: int) -> NDArray[np.uint8]:
    """An ADE20K mask (0 = unlabelled, 1..C) as labels uint8 [H, W]: 0..C-1, and 255 unlabelled.

    Raises:
        DataError: It is no image, not of one channel, or holds a value above C.
    """
    try:
        with Image.open(path) as image:
            values = np.array(image)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is no readable image: {error}. Unpack it again.") from error
    if values.ndim != 2 or values.max(initial=0) > num_classes:
        raise DataError(
            f"{path} is no mask of {num_classes} classes: shape {values.shape}, largest value "
            f"{values.max(initial=0)}. Masks are grey PNGs with 0 for unlabelled and 1 to "
            f"{num_classes} for the classes."
        )
    return (values.astype(np.int64) - 1).astype(np.uint8)  # 0 - 1 wraps to 255


def count_pixels(
    predicted: NDArray[Any], labels: NDArray[Any], num_classes: int, ignore: int = UNLABELLED
) -> dict[str, NDArray[np.int64]]:
    """Pixels of each class in one image: `intersection`, `predicted`, `labelled`, each int64 [C].

    Args:
        predicted: [H, W], 0..C-1.
        labels: [H, W], 0..C-1 or `ignore`; ignored pixels count nowhere.
        num_classes: C.
        ignore: Label of pixels without a class.
    """
    known = labels != ignore
    predicted, labels = predicted[known].astype(np.int64), labels[known].astype(np.int64)
    return {
        "intersection": np.bincount(labels[predicted == labels], minlength=num_classes),
        "predicted": np.bincount(predicted, minlength=num_classes),
        "labelled": np.bincount(labels, minlength=num_classes),
    }


def _examples(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
