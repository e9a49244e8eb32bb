"""Tiny drawn images with captions, for tests and benchmarks: no download, a second for thousands.

A scene is one to three coloured shapes on a plain or textured ground; its captions say which.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from maskclip_bench.data.demo.formats import tar_bytes
from maskclip_bench.runtime import derive_seed

COLOURS = {
    "red": (214, 40, 40),
    "green": (60, 160, 70),
    "blue": (40, 90, 200),
    "yellow": (240, 200, 50),
    "purple": (130, 60, 160),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle")
GROUNDS = {"grass": (90, 140, 70), "sand": (214, 190, 140), "water": (70, 130, 170)}


def draw_shapes(index: int, *, size: int = 72, seed: int = 0) -> tuple[Image.Image, list[str]]:
    """Scene number `index`: an RGB image [size, size] and three captions of it."""
    rng = np.random.default_rng(derive_seed(seed, "shapes", index))
    ground = str(rng.choice(list(GROUNDS)))
    noise = rng.integers(-18, 19, size=(size, size, 1))
    pixels = np.clip(np.array(GROUNDS[ground]) + noise, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    names = []
    for _ in range(int(rng.integers(1, 4))):
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        radius = int(rng.integers(max(2, size // 10), max(3, size // 4)))
        x, y = (int(v) for v in rng.integers(radius, size - radius, size=2))
        _draw(pen, shape, x, y, radius, COLOURS[colour])
        names.append(f"a {colour} {shape}")
    listed = " and ".join(names)
    return image, [
        f"{listed} on {ground}",
        f"a drawing of {listed}",
        f"{ground} with {listed}",
    ]


def draw_photo(index: int, *, width: int = 500, height: int = 375, seed: int = 0) -> Image.Image:
    """An image whose JPEG is about as large, and as slow to decode, as a photograph's.

    Smooth noise at several scales, with edges; a quality of 90 gives about 60 KB at 500 x 375.
    """
    rng = np.random.default_rng(derive_seed(seed, "photo", index))
    total = np.zeros((height, width, 3), dtype=np.float32)
    for step, strength in ((96, 60.0), (32, 30.0), (8, 16.0), (2, 10.0)):
        coarse = rng.normal(size=(height // step + 2, width // step + 2, 3)) * 40 + 128
        patch = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
        layer = np.asarray(patch.resize((width, height), Image.Resampling.BICUBIC))
        total += (layer.astype(np.float32) - 128) * (strength / 40)
    image = Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        colour = tuple(int(v) for v in rng.integers(0, 256, size=3))
        _draw(pen, str(rng.choice(SHAPES)), x, y, int(rng.integers(10, 60)), colour)
    return image.filter(ImageFilter.GaussianBlur(0.5))


def jpeg_bytes(image: Image.Image, *, quality: int = 90) -> bytes:
    """The image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_shape_shards(
    folder: Path, *, num_samples: int, num_shards: int, size: int = 72, seed: int = 0
) -> str:
    """Write webdataset shards `shapes-{000000..}.tar` (jpg, json, txt); returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        members: list[tuple[str, bytes]] = []
        for index in range(shard, num_samples, num_shards):
            image, captions = draw_shapes(index, size=size, seed=seed)
            members += [
                (f"{index:06d}.jpg", jpeg_bytes(image)),
                (f"{index:06d}.json", json.dumps({"captions": captions}).encode()),
                (f"{index:06d}.txt", captions[0].encode()),
            ]
        (folder / f"shapes-{shard:06d}.tar").write_bytes(tar_bytes(members))
    return str(folder / f"shapes-{{000000..{num_shards - 1:06d}}}.tar")


def _draw(
    pen: ImageDraw.ImageDraw,
    shape: str,
    x: int,
    y: int,
    radius: int,
    colour: tuple[int, ...],
) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon(
            [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour
        )
