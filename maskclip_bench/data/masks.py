"""Masks of classes: one rule for their values and one pairing with images, in all protocols.

| value | label | means |
| --- | --- | --- |
| 0 | 255 | unlabelled |
| 1 to C | 0 to C - 1 | the classes |
| C + 1 to 254 | refused | damage, or another class list |
| 255 | 255 | unlabelled (borders in VOC, Cityscapes and exports of LabelMe) |

A mask has one channel; a palette is only its display, the stored index is the value. Image and mask
are compared as they are stored: an EXIF orientation turns neither (see `data.images`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskclip_bench.data.directory_walk import FoundFile, walk_files, walk_images
from maskclip_bench.data.images import read_header
from maskclip_bench.data.left_over import NO_IMAGE, LeftOver, examples, shown
from maskclip_bench.errors import DataError

UNLABELLED = 255
"""Value and label of pixels that count nowhere; 0 is the other such value."""

MAX_CLASSES = 254
"""Classes that the values of a mask can tell apart."""

NO_MASK_OF = "masks without an image"
OTHER_SUFFIX = "images with another suffix than the config's img_suffix"

MANY = 10
"""Without a number of classes, a value above this many times the number of values is a stray."""

CHECK_THREADS = 8


def pair_masks(
    images: Path, masks: Path, *, image_suffix: str | None = None, mask_suffix: str = ".png"
) -> tuple[list[FoundFile], list[Path], LeftOver]:
    """The images below a folder, the mask of each, and what else the two folders hold.

    The mask of `a/b.jpg` is `a/b.png`.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        image_suffix: Only images whose names end so; None for every image that can be decoded.
        mask_suffix: How the masks' names end.

    Raises:
        DataError: A folder cannot be listed, an image has no mask, or two have the same one.
    """
    walk = walk_images(images)
    files = walk.files
    if image_suffix is not None:
        files = [file for file in files if file.name.endswith(image_suffix)]
        others = [file.name for file in walk.files if not file.name.endswith(image_suffix)]
        if images != masks:
            walk.left_over.add_all(OTHER_SUFFIX, others)
    found = walk_files(
        masks, wanted=lambda name: name.endswith(mask_suffix), other=lambda name: NO_IMAGE
    )
    mask_at = {file.name: file.path for file in found.files}
    names = [str(PurePosixPath(file.name).with_suffix(mask_suffix)) for file in files]
    absent = [file.name for file, name in zip(files, names, strict=True) if name not in mask_at]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(files)} images in {images} have no mask in {masks}, e.g. "
            f"{examples(absent)}. Unpack the annotations again."
        )
    shared = [name for name, count in Counter(names).items() if count > 1]
    if shared:
        both = [file.name for file, name in zip(files, names, strict=True) if name == shared[0]]
        raise DataError(
            f"{len(shared)} masks in {masks} belong to several images, e.g. {shown(shared[0])} to "
            f"{examples(both)}. Keep one image for each mask."
        )
    wanted = set(names)
    if images != masks:
        walk.left_over.add_all(NO_MASK_OF, (name for name in mask_at if name not in wanted))
    return files, [mask_at[name] for name in names], walk.left_over


def read_mask(path: Path, *, num_classes: int) -> NDArray[np.uint8]:
    """A mask as labels, uint8 [H, W]: 0 to C - 1, and 255 for unlabelled.

    Raises:
        DataError: It is no image, not of one channel, or has a value above C other than 255.
    """
    values = mask_values(path)
    _check_number(num_classes)
    stray = (values > num_classes) & (values != UNLABELLED)
    if stray.any():
        raise DataError(_no_class(path, int(values[stray].max()), num_classes))
    labels = np.asarray(values, dtype=np.uint8) - np.uint8(1)  # 0 - 1 wraps to 255
    labels[values == UNLABELLED] = UNLABELLED
    return labels


def mask_values(path: Path) -> NDArray[Any]:
    """The stored values of a mask, [H, W].

    Raises:
        DataError: It is no image, or not of one channel.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        with Image.open(path) as image:
            values = np.asarray(image)
    except Exception as error:  # decoders of damaged files raise almost anything
        raise DataError(
            f"{shown(path)} is no readable mask ({type(error).__name__}: {error}). Unpack it again."
        ) from None
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise DataError(
            f"{shown(path)} is no mask: it has the shape {values.shape} and values of type "
            f"{values.dtype}. Masks are grey or palette PNGs of one channel."
        )
    if values.dtype.kind == "i" and values.min(initial=0) < 0:
        raise DataError(f"{shown(path)} has values below 0, which are no classes.")
    return values


def check_mask_sizes(images: Iterable[Path], masks: Iterable[Path]) -> None:
    """Compare the stored sizes of images and masks, from their headers.

    Raises:
        DataError: A file is no image, or a mask is not of its image's size.
    """
    pairs = list(zip(images, masks, strict=True))
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        wrong = [text for text in pool.map(_size_difference, pairs) if text]
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(pairs)} masks in {pairs[0][1].parent} are not of their image's "
            f"size, e.g. {examples(wrong)}. Images and masks are of different releases, were "
            "resized, or the masks were drawn on images turned by their EXIF orientation, which is "
            "not applied."
        )


def _size_difference(pair: tuple[Path, Path]) -> str | None:
    image, mask = (read_header(path) for path in pair)
    if (image.width, image.height) == (mask.width, mask.height):
        return None
    return f"{pair[1].name} ({mask.width} x {mask.height}, image {image.width} x {image.height})"


def check_mask_values(masks: Sequence[Path], *, num_classes: int | None) -> None:
    """Look at the values of all masks before a long job starts on them.

    Args:
        masks: The files.
        num_classes: C; None if it is not known, then only a value far above all others is found.

    Raises:
        DataError: A mask cannot be read, or has a value that is no class.
    """
    if num_classes is not None:
        _check_number(num_classes)
    seen: set[int] = set()
    largest = (0, Path())
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        for path, values in zip(masks, pool.map(_distinct, masks), strict=True):
            top = max(values - {UNLABELLED}, default=0)
            if num_classes is not None and top > num_classes:
                raise DataError(_no_class(path, top, num_classes))
            seen |= values - {0, UNLABELLED}
            largest = max(largest, (top, path))
    if num_classes is None and largest[0] > MANY * len(seen):
        raise DataError(
            f"{shown(largest[1])} has the value {largest[0]}, and all {len(masks)} masks together "
            f"have only {len(seen)} classes. It is damaged, or the class list is missing: with the "
            "number of classes given, every class up to it is accepted."
        )


def _distinct(path: Path) -> set[int]:
    values = mask_values(path)
    if values.dtype.itemsize > 1:
        return {int(value) for value in np.unique(values)}
    return set(np.flatnonzero(np.bincount(values.ravel().astype(np.uint8))).tolist())


def _check_number(num_classes: int) -> None:
    if not 0 < num_classes <= MAX_CLASSES:
        raise DataError(
            f"{num_classes} classes: masks with values of 8 bits have 1 to {MAX_CLASSES} classes "
            "beside 0 and 255 for unlabelled. Correct the class list."
        )


def _no_class(path: Path, value: int, num_classes: int) -> str:
    return (
        f"{shown(path)} is no mask of {num_classes} classes: it has the value {value}. Masks have "
        f"0 or 255 for unlabelled and 1 to {num_classes} for the classes. Correct the mask or the "
        "class list."
    )


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


def class_shares(labels: NDArray[np.uint8], num_classes: int, grid: int) -> NDArray[np.float32]:
    """Shares of the classes in each cell of a grid over a mask, float32 [grid^2, C].

    A cell covers the pixels that adaptive average pooling would give it: from floor(i H / g) to
    ceil((i + 1) H / g), so that neighbours share a row or column where H / g is no whole number.
    Unlabelled pixels belong to no class and count in the size of the cell.

    Args:
        labels: [H, W], 0..C-1 or 255.
        num_classes: C.
        grid: Cells along a side.
    """
    rows, row_cell, heights = _cells(labels.shape[0], grid)
    columns, column_cell, widths = _cells(labels.shape[1], grid)
    classes = np.minimum(labels, num_classes).astype(np.int64)[rows][:, columns]
    cell = row_cell[:, None] * grid + column_cell[None, :]
    keys = cell * (num_classes + 1) + classes
    counts = np.bincount(keys.ravel(), minlength=grid * grid * (num_classes + 1))
    counted = counts.reshape(grid, grid, num_classes + 1)[..., :num_classes].astype(np.float32)
    shares = counted / heights[:, None, None] / widths[None, :, None]
    return shares.reshape(grid * grid, num_classes)


def _cells(
    size: int, grid: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Pixels of all cells along one side, the cell of each, and the number of pixels of a cell."""
    starts = [index * size // grid for index in range(grid)]
    ends = [-(-(index + 1) * size // grid) for index in range(grid)]
    pixels = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
    lengths = np.array(ends) - np.array(starts)
    return pixels, np.repeat(np.arange(grid), lengths), lengths.astype(np.float32)
