"""Pixels of a scene: painted from back to front, with what is visible of each object."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from maskclip_bench.data.demo.atlas import Atlas, load_atlas
from maskclip_bench.data.demo.scenes import STUFF, Scene, SceneObject
from maskclip_bench.data.demo.textures import NUM_VARIANTS, TEXTURE_SIZE, soft_disc, texture

OPAQUE = 128
"""An object's pixel counts as the object from this alpha on, as in `(alpha >= 128)`."""

UNLABELLED = 0
"""Semantic label of the sun and the moon, which are no class; stuff and groups count from 1."""

SUBMERGED = 0.2
"""Share of the height of an object in the water that is below the surface."""


@dataclass(frozen=True)
class Drawn:
    """A drawn scene.

    Attributes:
        image: RGB.
        owner: int16 [H, W]: 1-based position in `scene.objects` of the object that is seen at each
            pixel, 0 for none.
        stuff: uint8 [H, W]: 1-based position in `STUFF` of what is behind the objects, 0 for the
            sun or moon.
    """

    image: Image.Image
    owner: NDArray[np.int16]
    stuff: NDArray[np.uint8]


def draw_image(scene: Scene, *, size: int, seed: int, split: str) -> Image.Image:
    """The RGB image of a scene, `size` pixels wide and high, with the textures of `split`."""
    image = _paint_scenery(scene, size, seed, split, masks=None)
    for item in scene.objects:
        _paint_object(image, item, scene, size)
    return _lit(image, scene, size)


def draw_scene_with_masks(scene: Scene, *, size: int, seed: int, split: str) -> Drawn:
    """The image of a scene, and which object or stuff is visible at each pixel."""
    stuff = Image.new("L", (size, size))
    image = _paint_scenery(scene, size, seed, split, masks=stuff)
    owner = Image.new("L", (size, size))
    for position, item in enumerate(scene.objects, start=1):
        sprite, corner = _paint_object(image, item, scene, size)
        opaque = sprite.getchannel("A").point(_OPAQUE_TABLE)
        owner.paste(
            position, (*corner, corner[0] + sprite.width, corner[1] + sprite.height), opaque
        )
    return Drawn(
        image=_lit(image, scene, size),
        owner=np.asarray(owner).astype(np.int16),
        stuff=np.asarray(stuff).copy(),
    )


def semantic_labels(scene: Scene, drawn: Drawn) -> NDArray[np.uint8]:
    """uint8 [H, W]: 0 unlabelled, then `STUFF`, then the groups of the objects."""
    table = np.array(
        [0, *(len(STUFF) + 1 + item.object_class.group.index for item in scene.objects)],
        dtype=np.uint8,
    )
    return np.where(drawn.owner > 0, table[drawn.owner], drawn.stuff)


_OPAQUE_TABLE = [255 if alpha >= OPAQUE else 0 for alpha in range(256)]


def cut_out(item: SceneObject, size: int, atlas: Atlas) -> tuple[Image.Image, tuple[int, int]]:
    """The RGBA picture of an object at its size, and where its upper left corner goes."""
    sprite = atlas.sprites[item.drawing]
    if item.flip:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    width = max(2, round(item.width * size))
    height = max(2, round(item.height * size))
    sprite = sprite.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    if abs(item.angle) > 1:
        # A clear margin, else edges that touch the box turn into stairs.
        framed = Image.new("RGBA", (width + 2, height + 2))
        framed.paste(sprite, (1, 1))
        sprite = framed.rotate(item.angle, Image.Resampling.BICUBIC, expand=True)
    bottom = round(item.base * size)
    if item.where == "water":
        sprite = sprite.crop((0, 0, sprite.width, round(sprite.height * (1 - SUBMERGED))))
    # Turning widens the box by transparent corners: the middle stays where it was.
    left = round(item.center * size - sprite.width / 2)
    turned = 0 if item.where == "water" else (sprite.height - height) // 2
    return sprite, (left, bottom - sprite.height + turned)


def _paint_scenery(
    scene: Scene, size: int, seed: int, split: str, masks: Image.Image | None
) -> Image.Image:
    """Backdrop, sun or moon, water and ground; their labels go into `masks`."""
    image = Image.new("RGB", (size, size))
    shore, horizon = round(scene.shore * size), round(scene.horizon * size)
    lowest_edge = horizon + math.ceil(max(0.0, *scene.hills) * size) + 1
    # One draw gives the variant of the texture and the offset in it.
    spot = scene.texture * NUM_VARIANTS
    variant, rest = int(spot), spot - int(spot)

    def part(stuff: str, height: int, bottom_of_texture: bool) -> Image.Image:
        picture = texture(seed, split, stuff, variant)
        left = int(rest * (TEXTURE_SIZE - size))
        room = TEXTURE_SIZE - height
        top = room if bottom_of_texture else int(((rest * 7.13) % 1.0) * room)
        return picture.crop((left, top, left + size, top + height))

    backdrop_end = shore if scene.water else lowest_edge
    image.paste(part(scene.backdrop, backdrop_end, scene.backdrop != "brick wall"), (0, 0))
    if masks is not None:
        masks.paste(STUFF.index(scene.backdrop) + 1, (0, 0, size, backdrop_end))
    if scene.luminary is not None:
        _paint_luminary(image, scene, size, masks)
    if scene.water:
        image.paste(part("water", lowest_edge - shore, False), (0, shore))
        if masks is not None:
            masks.paste(STUFF.index("water") + 1, (0, shore, size, lowest_edge))

    top = horizon - math.ceil(-min(0.0, *scene.hills) * size)
    ground = part(scene.ground, size - top, False)
    edge = Image.new("L", ground.size)
    steps = len(scene.hills) - 1
    points = [(size * i / steps, horizon - top + h * size) for i, h in enumerate(scene.hills)]
    ImageDraw.Draw(edge).polygon([*points, (size, ground.height), (0, ground.height)], fill=255)
    # Farther ground is hazier.
    haze = (150, 160, 180) if scene.backdrop != "brick wall" else (60, 50, 45)
    shade = _haze().resize(ground.size, Image.Resampling.BILINEAR)
    ground.paste(haze, (0, 0), shade)
    image.paste(ground, (0, top), edge)
    if masks is not None:
        masks.paste(STUFF.index(scene.ground) + 1, (0, top, size, size), edge)
    return image


def _paint_luminary(image: Image.Image, scene: Scene, size: int, masks: Image.Image | None) -> None:
    """The sun by day, the moon by night, with a glow."""
    assert scene.luminary is not None
    x, y = (coordinate * size for coordinate in scene.luminary)
    radius = 0.055 * size
    night = scene.backdrop == "night sky"
    color = (238, 238, 222) if night else (255, 236, 150)
    glow = round(radius * 5)
    light = soft_disc(0.5, 255).resize((glow, glow), Image.Resampling.BILINEAR)
    image.paste(color, (round(x - glow / 2), round(y - glow / 2)), light)
    box = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(image).ellipse(box, fill=color)
    if masks is not None:
        ImageDraw.Draw(masks).ellipse(box, fill=UNLABELLED)


def _paint_object(
    image: Image.Image, item: SceneObject, scene: Scene, size: int
) -> tuple[Image.Image, tuple[int, int]]:
    """Shadow, then object; returns what was pasted and where."""
    sprite, corner = cut_out(item, size, load_atlas())
    if item.where == "ground":
        width, height = item.width * size, max(3.0, 0.16 * item.width * size)
        # Away from the light, and a little into the picture's depth.
        x = item.center * size - scene.light * 0.16 * width
        y = item.base * size - 0.16 * height
        disc = _shadow(round(width * 1.15), round(height * 1.2))
        image.paste((24, 22, 34), (round(x - disc.width / 2), round(y - disc.height / 2)), disc)
    image.paste(sprite, corner, sprite)
    if item.where == "water":
        line = corner[1] + sprite.height
        ripple = _shadow(round(sprite.width * 1.1), max(3, round(0.03 * size)))
        offset = (round(corner[0] - 0.05 * sprite.width), line - ripple.height // 3)
        image.paste((214, 234, 246), offset, ripple)
    return sprite, corner


@functools.lru_cache(maxsize=512)
def _shadow(width: int, height: int) -> Image.Image:
    """Mask of a soft ellipse."""
    size = (max(2, width), max(2, height))
    return soft_disc(0.95, 170).resize(size, Image.Resampling.BILINEAR)


@functools.lru_cache(maxsize=1)
def _haze() -> Image.Image:
    """Mask, 1 wide: strong at the top, gone a third of the way down."""
    levels = [max(0, round(90 * (1 - row / 10))) for row in range(32)]
    column = Image.new("L", (1, 32))
    column.putdata(levels)
    return column


@functools.lru_cache(maxsize=4096)
def _light(size: int, night: bool, side: int, brightness: int, warmth: int) -> Image.Image:
    """RGB factors (255 is 1) of the light over a picture.

    Args:
        size: Of the picture.
        night: Bluish and dim.
        side: -4 (from the left) to 4 (from the right).
        brightness: In steps of 1/24; 24 is the brightest.
        warmth: -3 (bluish) to 3 (yellowish).
    """
    ramp = np.linspace(-0.06, 0.06, size) * side / 4
    color = np.array((0.84, 0.86, 1.0) if night else (1.0, 1.0, 1.0))
    tint = np.array((1 + 0.025 * warmth, 1.0, 1 - 0.025 * warmth))
    row = (0.98 + ramp)[:, None] * color * tint * brightness / 24  # [W, 3]
    row = np.clip(255 * row, 0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(row[None], size, axis=0))


def _lit(image: Image.Image, scene: Scene, size: int) -> Image.Image:
    """A picture in the light of its scene."""
    light = _light(
        size,
        scene.backdrop == "night sky",
        round(4 * scene.light),
        round(24 * scene.brightness),
        round(3 * scene.warmth),
    )
    return ImageChops.multiply(image, light)
