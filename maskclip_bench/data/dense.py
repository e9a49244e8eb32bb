"""Checks of masked images and COCO files before a long job starts on them.

They read listings, image headers, the annotation file, and the values of masks: seconds for COCO, a
minute on one core for ADE20K's 22,000 masks.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from maskclip_bench.data.coco import image_names, outside_boxes, read_coco
from maskclip_bench.data.images import read_header
from maskclip_bench.data.left_over import LeftOver, examples, shown
from maskclip_bench.data.masks import (
    check_mask_sizes,
    check_mask_values,
    count_pixels,
    pair_masks,
    read_mask,
)
from maskclip_bench.errors import DataError

__all__ = ["check_coco", "check_segmentation_folder", "count_pixels", "read_coco", "read_mask"]

CHECK_THREADS = 8

logger = logging.getLogger(__name__)


def check_segmentation_folder(
    images: Path,
    masks: Path,
    *,
    image_suffix: str | None = None,
    mask_suffix: str = ".png",
    num_classes: int | None = None,
) -> int:
    """Check a folder of images against its masks -> number of pairs.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        image_suffix: Only images whose names end so; None for every image that can be decoded.
        mask_suffix: How the masks' names end.
        num_classes: Classes of the masks' values from 1 on; None if it is not known.

    Raises:
        DataError: A folder is missing or empty, an image is broken or has no mask, a mask has
            another size or a value that is no class.
    """
    for folder, what in ((images, "images"), (masks, "masks")):
        if not folder.is_dir():
            raise DataError(
                f"No folder {folder} of {what}. Set MASKCLIP_BENCH_DATA (or the config's "
                "data_root) to the folder of the data; ADE20K unpacks to ADEChallengeData2016/ "
                "with images/{training,validation} and annotations/{training,validation}."
            )
    files, paths, left_over = pair_masks(
        images, masks, image_suffix=image_suffix, mask_suffix=mask_suffix
    )
    if not files:
        raise DataError(
            f"{images} holds no {f'*{image_suffix}' if image_suffix else 'image'}. Unpack the data "
            "set again."
        )
    check_mask_sizes([file.path for file in files], paths)
    check_mask_values(paths, num_classes=num_classes)
    _warn(images, left_over)
    return len(files)


def check_coco(annotations: Path, images: Path) -> int:
    """Check a COCO annotation file against a folder of images -> number of images.

    Raises:
        DataError: A file or folder is missing, the file is broken, names absent images, or says
            another size than an image has.
    """
    content = read_coco(annotations)
    if not images.is_dir():
        raise DataError(
            f"No folder {images} of images, which {annotations} describes. Set "
            "MASKCLIP_BENCH_DATA (or the config's data_root) to the folder of the data; COCO "
            "unpacks to coco/{train2017,val2017,annotations}."
        )
    names = image_names(content)
    absent = [name for name in names if not (images / name).is_file()]
    if absent:
        raise DataError(
            f"{annotations} names {len(absent)} of {len(names)} images that are not in {images}, "
            f"e.g. {examples(absent)}. Unpack the images again, or give the annotation file of "
            "this split."
        )
    check_coco_sizes(content, images, annotations)
    _warn(annotations, outside_boxes(content))
    return len(names)


def check_coco_sizes(content: dict[str, Any], images: Path, annotations: Path) -> None:
    """Compare the sizes that a COCO file says with those stored in the images.

    Raises:
        DataError: An image is broken, or of another size.
    """
    named = list(zip(image_names(content), content["images"], strict=True))
    sized = [(name, image) for name, image in named if image.get("width") and image.get("height")]
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        headers = list(pool.map(lambda pair: read_header(images / pair[0]), sized))
    wrong = [
        f"{name} ({image['width']} x {image['height']}, stored {header.width} x {header.height})"
        for (name, image), header in zip(sized, headers, strict=True)
        if (image["width"], image["height"]) != (header.width, header.height)
    ]
    if wrong:
        raise DataError(
            f"{annotations} says another size than {len(wrong)} of {len(sized)} images have, e.g. "
            f"{examples(wrong)}. The images were resized, or its boxes were drawn on images turned "
            "by their EXIF orientation, which is not applied: turn the images and remove the tag."
        )


def _warn(where: Path, left_over: LeftOver) -> None:
    sentence = left_over.sentence()
    if sentence:
        logger.warning("%s: left out: %s", shown(where), sentence)
