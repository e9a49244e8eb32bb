"""Pillow's bilinear resize of a box, with antialiasing, for whole batches and on any device.

Pillow resizes images of 8 bits a channel (`src/libImaging/Resample.c`) with weights that are whole
multiples of 2^-22, one axis after the other, and rounds to whole levels after each. Every sum is
then one of whole numbers below 2^31, which double precision adds without an error in any order. So
two batched matrix products in double precision give the very levels that Pillow gives.

The weights of an output pixel are those of a triangle around its place in the box, which is wider
where the image is reduced. Pixels beside the box are read too, those beside the image are not.

Which axis comes first decides the rounding. Up to version 12 Pillow goes along the rows first; from
13 on it begins with the columns of an image whose height shrinks much more than its width. So the
installed Pillow is asked (`columns_first`).

Legend: b images, V boxes of each, A x B pixels of an image (B is the axis that comes first), S
pixels of the result along both axes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

UNITS = float(1 << 22)
"""A weight of 1, in the units of Pillow's weights."""

LARGEST_WORK = 1 << 28
"""Bytes of double precision at a time; a batch that needs more is resized in several pieces."""

NOISE = 65_521
"""Pixels after which the noise repeats that the order is told by; a prime number."""


def windows(
    boxes: npt.NDArray[np.float64], extents: npt.NDArray[np.int64], size: int
) -> npt.NDArray[np.float64]:
    """What `resize` is told of boxes: float64 [..., 4].

    Args:
        boxes: [..., 2], where a box begins and ends along an axis, in pixels.
        extents: [...], pixels of the image along the axis.
        size: S.

    Returns:
        For each: where it begins, its pixels for one of the result, one over them (1 if they are
        fewer than one), and the extent. Pillow takes boxes in single precision.
    """
    low, high = np.moveaxis(boxes.astype(np.float32), -1, 0)
    step = (high - low).astype(np.float64) / size
    return np.stack([low.astype(np.float64), step, 1.0 / np.maximum(step, 1.0), extents], axis=-1)


def resize(images: Tensor, places: Tensor, size: int) -> Tensor:
    """Resize boxes of images, along the last axis first.

    Args:
        images: uint8 [b, 3, A, B], zeros beside an image that is smaller.
        places: float64 [2, V, b, 4], `windows` along A and along B.
        size: S.

    Returns:
        uint8 [V, b, 3, S, S].
    """
    num_views = places.shape[1]
    length, width = images.shape[2:]
    numbers = 3 * (length + num_views * size) * (width + size)
    numbers += 3 * num_views * size * (length + width)  # weights, and what they are made of
    piece = max(1, LARGEST_WORK // (8 * numbers))
    results = [
        _resize(some, place, size)
        for some, place in zip(images.split(piece), places.split(piece, dim=2), strict=True)
    ]
    return results[0] if len(results) == 1 else torch.cat(results, dim=1)


def _resize(images: Tensor, places: Tensor, size: int) -> Tensor:
    count, channels, length, width = images.shape
    num_views = places.shape[1]
    if length == width:
        down, across = _weights(places, width, size).unbind(0)  # each [V, b, S, A]
    else:
        down, across = _weights(places[0], length, size), _weights(places[1], width, size)
    pixels = images.to(torch.float64).view(count, channels * length, width)
    columns = across.permute(1, 3, 0, 2).reshape(count, width, num_views * size)  # [b, B, V * S]
    rows = _rounded(pixels @ columns).view(count, channels, length, num_views, size)
    rows = rows.permute(3, 0, 1, 2, 4)  # [V, b, 3, A, S]
    return _rounded(down[:, :, None] @ rows).to(torch.uint8)


def _weights(places: Tensor, length: int, size: int) -> Tensor:
    """Weights of all pixels in each one of the result, in units: [..., 4] -> [..., S, length]."""
    start, step, share, extent = places[..., None].unbind(-2)  # each [..., 1]
    steps = torch.arange(size, dtype=torch.float64, device=places.device) + 0.5
    centers = start + steps * step  # [..., S]
    taps = torch.arange(length, dtype=torch.float64, device=places.device)
    distances = (taps - centers[..., None] + 0.5) * share[..., None]
    triangle = (1 - distances.abs_()).clamp_(min=0)
    triangle *= taps < extent[..., None]
    triangle /= triangle.sum(dim=-1, keepdim=True)
    return triangle.mul_(UNITS).add_(0.5).floor_()


def _rounded(sums: Tensor) -> Tensor:
    """Sums in units -> whole levels 0 to 255, in place."""
    return sums.add_(UNITS / 2).mul_(1 / UNITS).floor_().clamp_(0, 255)


@cache
def columns_first(width: int, height: int, size: int) -> bool:
    """Whether the installed Pillow resizes the columns of an image before its rows.

    Args:
        width: Of the image.
        height: Of the image.
        size: S.
    """
    noise = np.random.default_rng(0).integers(0, 256, NOISE, dtype=np.uint8)
    image = Image.fromarray(np.resize(noise, (height, width)))
    right, bottom = width - 0.5, height - 0.5
    whole = _bilinear(image, (size, size), (0, 0, right, bottom))
    rows = _bilinear(image, (size, height), (0, 0, right, height))
    if _bilinear(rows, (size, size), (0, 0, size, bottom)).tobytes() == whole.tobytes():
        return False
    columns = _bilinear(image, (width, size), (0, 0, width, bottom))
    both = _bilinear(columns, (size, size), (0, 0, right, size))
    return both.tobytes() == whole.tobytes()


def _bilinear(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR, box=box)
