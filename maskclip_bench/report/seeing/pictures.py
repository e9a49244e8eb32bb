"""Pictures of maps over patches, as small files: one pixel a patch, enlarged where it is shown.

G patches along a side, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

HEAT: Colour = (230, 85, 13)
"""Of a map over an image; its strength is the opacity."""
RIGHT: Colour = (0, 114, 178)
WRONG: Colour = (213, 94, 0)
"""Blue and vermilion, which the colour-blind tell apart (Okabe and Ito)."""

SHOWN_SIZE = 192
"""Longer side of an image as it is stored for the page."""
CROP = 44
GAP = 3
PER_LINE = 3
"""Crops of a line; the place of a sixth is left for the count."""


def colour_map(colours: NDArray[np.floating], grid: int) -> Image.Image:
    """Colours of patches [G * G, 3], 0 to 1 -> RGB of G x G pixels."""
    pixels = np.rint(255 * colours).astype(np.uint8).reshape(grid, grid, 3)
    return Image.fromarray(pixels)


def heat_map(scores: NDArray[np.floating], grid: int) -> Image.Image:
    """A map over patches [G * G] -> RGBA of G x G pixels: the higher, the less transparent.

    From its median to its highest value; a map without differences is transparent.
    """
    low, high = float(np.median(scores)), float(scores.max())
    strength = np.clip((scores - low) / (high - low), 0, 1) if high > low else np.zeros_like(scores)
    pixels = np.zeros((grid, grid, 4), dtype=np.uint8)
    pixels[..., :3] = HEAT
    pixels[..., 3] = np.rint(215 * strength).astype(np.uint8).reshape(grid, grid)
    return Image.fromarray(pixels)


def over(image: Image.Image, heat: Image.Image) -> Image.Image:
    """A heat map over a grey, light copy of the image."""
    grey = image.convert("L").convert("RGB")
    light = Image.blend(grey, Image.new("RGB", grey.size, "white"), 0.35).convert("RGBA")
    light.alpha_composite(heat.resize(image.size, Image.Resampling.BILINEAR))
    return light.convert("RGB")


def mask_picture(mask: NDArray[np.uint8], num_classes: int) -> Image.Image:
    """Labels [H, W] in colours; unlabelled is white."""
    palette = np.full((256, 3), 255, dtype=np.uint8)
    palette[:num_classes] = class_colours(num_classes)
    return Image.fromarray(palette[mask])


def class_colours(num_classes: int) -> NDArray[np.uint8]:
    """Distinct colours by golden steps around the hue circle and three levels of light, [C, 3]."""
    import colorsys

    colours = [
        colorsys.hls_to_rgb((0.13 + 0.618034 * i) % 1, (0.42, 0.58, 0.72)[i % 3], 0.55)
        for i in range(num_classes)
    ]
    return np.rint(255 * np.array(colours)).astype(np.uint8)


def shown(image: Image.Image) -> Image.Image:
    """An image at the size in which the page stores it."""
    scale = SHOWN_SIZE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def crop_around(image: Image.Image, patch: int, grid: int) -> Image.Image:
    """The patch with one patch of its surroundings on each side."""
    row, column = divmod(patch, grid)
    width, height = image.width / grid, image.height / grid
    box = (
        max(0.0, (column - 1) * width),
        max(0.0, (row - 1) * height),
        min(float(image.width), (column + 2) * width),
        min(float(image.height), (row + 2) * height),
    )
    return image.resize((CROP, CROP), Image.Resampling.BICUBIC, box=box)


def crops_together(crops: Sequence[Image.Image], right: Sequence[bool]) -> Image.Image:
    """Crops three in a line: a blue frame where right, a vermilion one with a cross where not."""
    side = CROP + 2 * GAP
    step = side + GAP
    lines = max(1, -(-len(crops) // PER_LINE))
    size = (PER_LINE * step - GAP, lines * step - GAP)
    picture = Image.new("RGBA", size, (255, 255, 255, 0))
    draw = ImageDraw.Draw(picture)
    for index, (crop, good) in enumerate(zip(crops, right, strict=True)):
        line, column = divmod(index, PER_LINE)
        left, top = column * step, line * step
        box = (left, top, left + side - 1, top + side - 1)
        draw.rectangle(box, fill=RIGHT if good else WRONG)
        picture.paste(crop, (left + GAP, top + GAP))
        if not good:  # a mark that does not need colour
            x, y = left + GAP, top + GAP
            draw.line((x, y, x + 9, y + 9), fill=WRONG, width=3)
            draw.line((x, y + 9, x + 9, y), fill=WRONG, width=3)
    return picture
