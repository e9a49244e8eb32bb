from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip_bench.data import resize as module
from maskclip_bench.data.images import Crop, random_crop
from maskclip_bench.data.resize import columns_first, resize, windows

Box = tuple[float, float, float, float]


def by_pillow(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def by_us(images: np.ndarray, boxes: list[list[Box]], size: int, *, padding: int = 0) -> np.ndarray:
    """uint8 [b, H, W, 3], boxes [V][b] -> uint8 [V, b, S, S, 3]."""
    count, height, width, _ = images.shape
    padded = np.zeros((count, 3, height + padding, width + padding), dtype=np.uint8)
    padded[:, :, :height, :width] = images.transpose(0, 3, 1, 2)
    given = np.array(boxes)  # [V, b, 4]: left, top, right, bottom
    extents = np.ones(given.shape[:2], dtype=np.int64)
    down = windows(given[..., [1, 3]], height * extents, size)
    across = windows(given[..., [0, 2]], width * extents, size)
    places, pixels = torch.from_numpy(np.stack([down, across])), torch.from_numpy(padded)
    if columns_first(width, height, size):
        found = resize(pixels.transpose(2, 3).contiguous(), places.flip(0), size).transpose(-1, -2)
    else:
        found = resize(pixels, places, size)
    return found.permute(0, 1, 3, 4, 2).numpy()


def box_of(crop: Crop) -> Box:
    return crop.left, crop.top, crop.left + crop.width, crop.top + crop.height


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (72, 72, 48),
        (30, 30, 48),  # enlarged
        (48, 48, 48),
        (90, 60, 32),
        (33, 97, 48),  # its height shrinks more
        (60, 107, 16),
        (17, 300, 16),
        (300, 17, 16),
        (1, 1, 16),
        (1, 200, 8),
        (2000, 1, 8),
    ],
)
@pytest.mark.parametrize("padding", [0, 7])
def test_resize__to_the_bit_as_pillow(width: int, height: int, size: int, padding: int) -> None:
    rng, noise = random.Random(width * height), np.random.default_rng(size)
    images = noise.integers(0, 256, (12, height, width, 3), dtype=np.uint8)
    images[:4] = images[:4] // 255 * 255  # black and white, where rounding shows most
    crops = [
        [random_crop(width, height, scale=scale, ratio=(0.75, 4 / 3), rng=rng) for _ in images]
        for scale in ((0.05, 1.0), (0.5, 1.0))
    ]
    boxes = [[box_of(crop) for crop in view] for view in crops]
    boxes[1][0] = (0, 0, width, height)
    found = by_us(images, boxes, size, padding=padding)
    for view, of_view in zip(found, boxes, strict=True):
        for image, box, ours in zip(images, of_view, view, strict=True):
            np.testing.assert_array_equal(ours, by_pillow(image, box, size))


def test_resize__boxes_between_pixels() -> None:
    """As where a JPEG was decoded at a reduced size; Pillow takes them in single precision."""
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 61, 3), dtype=np.uint8)
    box = (3 * 61 / 122.0, 7.3, 41 / 3, 49.99999)
    (found,) = by_us(images, [[box] * 3], 12)
    for image, ours in zip(images, found, strict=True):
        np.testing.assert_array_equal(ours, by_pillow(image, box, 12))


def test_resize__in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)
    boxes: list[list[Box]] = [[(1, 2, 15, 18)] * 5, [(0, 0, 20, 20)] * 5]
    whole = by_us(images, boxes, 8)
    monkeypatch.setattr(module, "LARGEST_WORK", 1)
    np.testing.assert_array_equal(by_us(images, boxes, 8), whole)


@pytest.mark.parametrize(("width", "height"), [(20, 24), (20, 60), (16, 16), (60, 20), (1, 1)])
def test_columns_first__is_what_pillow_does(width: int, height: int) -> None:
    """Asked with a grey image; colours are resized in the same order."""
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = by_pillow(image, (0, 0, width, height), 16)
    picture = Image.fromarray(image)
    first = (width, 16) if columns_first(width, height, 16) else (16, height)
    once = picture.resize(first, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(
        np.asarray(once.resize((16, 16), Image.Resampling.BILINEAR)), whole
    )
