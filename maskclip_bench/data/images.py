"""From encoded images to cropped uint8 views, no more pixels decoded than the crops need."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip_bench.data.pairs.pair_sources import BROKEN_IMAGE, BadSampleError

NUM_CROP_TRIES = 10
"""As in torchvision's `RandomResizedCrop`."""

JPEG_FACTORS = (8, 4, 2)
"""A JPEG can be decoded at 1/8, 1/4 and 1/2 of its size for a part of the work."""


class Crop(NamedTuple):
    """A rectangle in pixels of the original image."""

    left: int
    top: int
    width: int
    height: int


def random_crop(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: random.Random,
) -> Crop:
    """Draw a crop as torchvision's `RandomResizedCrop` does.

    Args:
        width: Of the image, pixels.
        height: Of the image, pixels.
        scale: Smallest and largest area of the crop, as a share of the image.
        ratio: Smallest and largest width over height.
        rng: What to draw from.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(NUM_CROP_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.random() * (width - crop_width + 1))
            top = int(rng.random() * (height - crop_height + 1))
            return Crop(left, top, crop_width, crop_height)
    return _central_crop(width, height, ratio=ratio)


def _central_crop(width: int, height: int, *, ratio: tuple[float, float]) -> Crop:
    """The largest crop in the middle whose shape `ratio` allows."""
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = min(width, max(1, round(height * aspect)))
    crop_height = min(height, max(1, round(width / aspect)))
    return Crop((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)


def decode_crops(
    data: bytes,
    outputs: Sequence[npt.NDArray[np.uint8]],
    *,
    scales: Sequence[tuple[float, float]],
    ratio: tuple[float, float],
    rng: random.Random,
) -> None:
    """Decode an image once and write a random crop of it into each of `outputs`.

    Crops are resized bilinearly with antialiasing. A large JPEG is decoded at a reduced size as
    long as every crop keeps at least the pixels it is resized to. Orientation tags are ignored,
    as in SLIP's loader.

    Args:
        data: The encoded image.
        outputs: For each view, where it goes: uint8 [S, S, 3].
        scales: For each view, the range of its crop's area.
        ratio: Range of width over height.
        rng: What to draw from.

    Raises:
        BadSampleError: The bytes are no image, or a broken one.
    """
    size = outputs[0].shape[0]
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        width, height = image.size
        crops = [random_crop(width, height, scale=s, ratio=ratio, rng=rng) for s in scales]
        if image.format == "JPEG":
            _decode_reduced(image, crops, size)
        if image.mode != "RGB":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
        else:
            image.load()
        across, down = image.size[0] / width, image.size[1] / height
        for output, crop in zip(outputs, crops, strict=True):
            box = (
                crop.left * across,
                crop.top * down,
                min((crop.left + crop.width) * across, image.size[0]),
                min((crop.top + crop.height) * down, image.size[1]),
            )
            output[...] = np.asarray(
                image.resize((size, size), resample=Image.Resampling.BILINEAR, box=box)
            )
    except Exception as error:
        # Decoders fed with arbitrary bytes raise almost anything (OSError, SyntaxError,
        # struct.error, DecompressionBombError...); every one of them means a broken image.
        raise BadSampleError(BROKEN_IMAGE, f"{type(error).__name__}: {error}") from None


def _decode_reduced(image: Image.Image, crops: Sequence[Crop], size: int) -> None:
    """Tell libjpeg to decode at the smallest size at which no crop is enlarged."""
    smallest = min(min(crop.width, crop.height) for crop in crops)
    for factor in JPEG_FACTORS:
        if smallest >= factor * size:
            image.draft("RGB", (image.size[0] // factor, image.size[1] // factor))
            return
