"""Textures of skies and grounds, made of seeded noise.

Every split has textures of its own (the split is part of their seed), so that a test scene repeats
no ground of a training scene.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from maskclip_bench.runtime import derive_seed

Floats = NDArray[np.float64]

TEXTURE_SIZE = 192
"""Side of a texture in pixels; scenes show a part of it, pixel by pixel."""

NUM_VARIANTS = 3


@functools.lru_cache(maxsize=128)
def texture(seed: int, split: str, stuff: str, variant: int) -> Image.Image:
    """RGB image of `TEXTURE_SIZE`, one of `NUM_VARIANTS` of this stuff in this split; cached."""
    random = np.random.default_rng(derive_seed(seed, "texture", split, stuff, variant))
    pixels = _PAINTERS[stuff](random)  # [H, W, 3], 0 to 255
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _noise(random: np.random.Generator, cells: tuple[int, int], size: int = TEXTURE_SIZE) -> Floats:
    """Smooth noise in [0, 1] with `cells` (down, across) random values, [size, size]."""
    grid = Image.fromarray(random.random(cells).astype(np.float32))
    smooth = grid.resize((size, size), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth, dtype=np.float64), 0, 1)


def _fractal(random: np.random.Generator, cells: tuple[int, int], octaves: int) -> Floats:
    """Sum of octaves of `_noise`, each twice as fine and half as strong, in [0, 1]."""
    total, weight = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE)), 0.0
    for octave in range(octaves):
        scale = 2**octave
        total += _noise(random, (cells[0] * scale, cells[1] * scale)) / scale
        weight += 1 / scale
    return total / weight


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], amount: Floats) -> Floats:
    """Colours between `low` and `high`: amount [H, W] -> [H, W, 3]."""
    start, end = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
    return start + (end - start) * amount[..., None]


def _gradient() -> Floats:
    """0 at the top to 1 at the bottom, [H, W]."""
    return np.repeat(np.linspace(0, 1, TEXTURE_SIZE)[:, None], TEXTURE_SIZE, axis=1)


def _sky(random: np.random.Generator) -> Floats:
    blue = _mix((88, 156, 226), (190, 221, 244), _gradient())
    clouds = np.clip((_fractal(random, (7, 3), 4) - 0.53) * 5.5, 0, 0.95)[..., None]
    shade = 255 - 26 * _fractal(random, (8, 4), 2)[..., None]
    return blue * (1 - clouds) + shade * clouds


def _night_sky(random: np.random.Generator) -> Floats:
    dark = _mix((22, 26, 70), (74, 74, 132), _gradient() + 0.25 * _fractal(random, (4, 3), 3) - 0.1)
    stars = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE))
    for brightness, count in ((130, 150), (235, 62)):
        rows = (random.random(count) ** 1.3 * TEXTURE_SIZE).astype(int)
        columns = (random.random(count) * TEXTURE_SIZE).astype(int)
        stars[rows, columns] = brightness
    return np.asarray(np.maximum(dark, stars[..., None]))


def _bricks(random: np.random.Generator) -> Floats:
    height, width = int(random.integers(9, 13)), int(random.integers(21, 28))
    rows = np.arange(TEXTURE_SIZE) // height
    offsets = (rows % 2) * (width // 2)
    columns = (np.arange(TEXTURE_SIZE)[None, :] + offsets[:, None]) // width
    shades = random.random((rows.max() + 1, columns.max() + 1))
    brick = shades[rows[:, None], columns]
    base = random.integers(0, 3)
    low, high = (
        ((136, 62, 48), (182, 94, 70)),
        ((146, 84, 62), (190, 122, 92)),
        ((120, 66, 62), (160, 92, 84)),
    )[base]
    wall = _mix(low, high, 0.7 * brick + 0.3 * _fractal(random, (32, 32), 2))
    seam = (np.arange(TEXTURE_SIZE) % height == 0)[:, None] | (
        (np.arange(TEXTURE_SIZE)[None, :] + offsets[:, None]) % width == 0
    )
    wall[seam] = np.array((196, 184, 170)) - 20 * random.random((int(seam.sum()), 1))
    return wall


def _water(random: np.random.Generator) -> Floats:
    waves = 0.6 * _noise(random, (64, 9)) + 0.4 * _noise(random, (128, 24))
    water = _mix((30, 98, 160), (70, 152, 200), _gradient() * 0.5 + 0.5 * waves)
    glints = np.clip((waves - 0.66) * 8, 0, 0.8)[..., None]
    return water * (1 - glints) + 236 * glints


def _grass(random: np.random.Generator) -> Floats:
    patches = _fractal(random, (6, 6), 3)
    blades = 0.5 * _noise(random, (48, 128)) + 0.5 * random.random((TEXTURE_SIZE, TEXTURE_SIZE))
    lawn = _mix((62, 122, 44), (136, 188, 82), 0.5 * patches + 0.5 * blades)
    count = int(random.integers(18, 50))
    rows = random.integers(0, TEXTURE_SIZE, count)
    columns = random.integers(0, TEXTURE_SIZE, count)
    petals = np.array(((250, 246, 232), (248, 218, 92), (226, 160, 200)))
    lawn[rows, columns] = petals[random.integers(0, 3, count)]
    return lawn


def _sand(random: np.random.Generator) -> Floats:
    bend = 9 * _noise(random, (4, 4)) + np.arange(TEXTURE_SIZE)[:, None] / random.uniform(2.2, 3.4)
    ripples = 0.5 + 0.5 * np.sin(bend)
    grain = random.random((TEXTURE_SIZE, TEXTURE_SIZE))
    dunes = _fractal(random, (4, 3), 3)
    return _mix((204, 170, 112), (246, 222, 172), 0.45 * dunes + 0.25 * ripples + 0.3 * grain)


def _snow(random: np.random.Generator) -> Floats:
    drifts = _fractal(random, (7, 4), 4)
    snow = _mix((196, 212, 232), (252, 253, 255), np.clip(1.5 * drifts - 0.2, 0, 1))
    sparkle = random.random((TEXTURE_SIZE, TEXTURE_SIZE)) > 0.985
    snow[sparkle] = 255
    return snow - 6 * random.random((TEXTURE_SIZE, TEXTURE_SIZE, 1))


def _floor(random: np.random.Generator) -> Floats:
    height, length = int(random.integers(9, 14)), int(random.integers(70, 120))
    rows = np.arange(TEXTURE_SIZE) // height
    offsets = random.integers(0, length, int(rows.max()) + 1)[rows]
    columns = (np.arange(TEXTURE_SIZE)[None, :] + offsets[:, None]) // length
    board = random.random((int(rows.max()) + 1, int(columns.max()) + 1))[rows[:, None], columns]
    grain = _noise(random, (TEXTURE_SIZE, 12))
    low, high = (((146, 98, 56), (204, 154, 102)), ((108, 70, 44), (164, 114, 74)))[
        int(random.integers(0, 2))
    ]
    floor = _mix(low, high, 0.55 * board + 0.45 * grain)
    seam = (np.arange(TEXTURE_SIZE) % height == 0)[:, None] | (
        (np.arange(TEXTURE_SIZE)[None, :] + offsets[:, None]) % length == 0
    )
    floor[seam] *= 0.62
    return floor


_PAINTERS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "sky": _sky,
    "night sky": _night_sky,
    "brick wall": _bricks,
    "water": _water,
    "grass": _grass,
    "sand": _sand,
    "snow": _snow,
    "wooden floor": _floor,
}


@functools.lru_cache(maxsize=8)
def soft_disc(strength: float, most: int) -> Image.Image:
    """A blurred disc, L mode: the shape of shadows and of the glow of sun and moon.

    Args:
        strength: Factor of all values.
        most: No value is larger.
    """
    steps = 2 * np.linspace(-1, 1, 64)
    values = np.clip(1 - np.hypot(steps[:, None], steps[None, :]), 0, 1) ** 0.8 * 255
    disc = Image.fromarray(values.astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    return Image.fromarray(np.minimum(most, strength * np.asarray(disc)).astype(np.uint8))
