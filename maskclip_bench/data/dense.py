"""Checks of segmentation folders and COCO files, before a long job starts on them.

They read directory listings, image headers and the annotation file, no pixels: seconds for
ADE20K and COCO.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from maskclip_bench.errors import DataError

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


def _examples(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
