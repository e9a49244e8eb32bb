"""Slices of the objects' test split: the same drawings, small in the image or half hidden.

A world has them only where its sizes ask for them (`DemoSizes.objects_val_small`), as the worlds of
the study do.
"""

from __future__ import annotations

from PIL import Image, ImageDraw

from maskclip_bench.data.demo.draws import Draws
from maskclip_bench.data.demo.scenes import PORTRAIT, Scene, SceneStyle

SMALL = "val_small"
OCCLUDED = "val_occluded"
SLICES = (SMALL, OCCLUDED)
"""Splits of the objects that a world may have."""

SMALL_OBJECT = SceneStyle(counts=(1.0,), sizes=(0.22, 0.40))
"""One object of a quarter to two fifths of the side: about a fifth of a portrait's area."""

HIDDEN_SHARE = 0.5
"""Share of the object's box that the occluder covers, from one side."""


def object_style(split: str) -> SceneStyle:
    """How large the object of a split is."""
    return SMALL_OBJECT if split == SMALL else PORTRAIT


def after_drawing(split: str, image: Image.Image, scene: Scene, draws: Draws) -> Image.Image:
    """The image as the split has it: with an occluder in the slice of occluded objects.

    Args:
        split: Of the objects.
        image: RGB, as drawn; it is not changed.
        scene: What is in it; its last object is the one in front.
        draws: The stream of this image.
    """
    return occlude(image, scene, draws) if split == OCCLUDED else image


def occlude(image: Image.Image, scene: Scene, draws: Draws) -> Image.Image:
    """Cover half of the box of the object in front by a plain rectangle of a random colour."""
    left, top, right, bottom = (value * image.width for value in scene.objects[-1].box)
    side = draws.integer(4)
    if side == 0:
        right = left + (right - left) * HIDDEN_SHARE
    elif side == 1:
        left = right - (right - left) * HIDDEN_SHARE
    elif side == 2:
        bottom = top + (bottom - top) * HIDDEN_SHARE
    else:
        top = bottom - (bottom - top) * HIDDEN_SHARE
    color = tuple(draws.integer(256) for _ in range(3))
    covered = image.copy()
    ImageDraw.Draw(covered).rectangle((left, top, right, bottom), fill=color)
    return covered
