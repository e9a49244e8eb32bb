"""mmcv reads images by the rules of `data.images`: pixels as they are stored.

mmcv turns an image by its EXIF orientation and leaves its mask and boxes as they are; here nothing
is turned. Kinds of images that OpenCV reads in another way than the other protocols (16 bits,
palettes, transparency, CMYK) or not at all go through the one decoder of the benchmark; 8-bit RGB
and grey images keep mmcv's.
"""

from __future__ import annotations

import io
from typing import Any

import mmcv
import mmcv.image
import numpy as np
from PIL import Image

from maskclip_bench.data.images import decode
from maskclip_bench.errors import DataError

_IGNORING = {"color": "color_ignore_orientation", "grayscale": "grayscale_ignore_orientation"}
_KEPT = ("RGB", "L")
"""Modes that mmcv decodes: both rules give the same pixels, and OpenCV is faster."""


def install() -> None:
    """Replace `mmcv.imfrombytes`; calling it again does nothing more."""
    original = mmcv.imfrombytes
    if hasattr(original, "ignores_orientation"):
        return

    def imfrombytes(
        content: bytes,
        flag: str = "color",
        channel_order: str = "bgr",
        backend: str | None = None,
    ) -> Any:
        """Bytes of an image file -> uint8 [H, W, 3] (`color`), else as mmcv reads it."""
        if flag != "color":
            return original(content, _IGNORING.get(flag, flag), channel_order, backend)
        if _mode(content) in _KEPT:
            pixels = original(content, _IGNORING[flag], "bgr", backend)
        else:
            pixels = None
        if pixels is None:  # OpenCV cannot read it, or not by our rule
            pixels = np.asarray(decode(content, what="An image"))[..., ::-1]
        return np.ascontiguousarray(pixels if channel_order == "bgr" else pixels[..., ::-1])

    imfrombytes.ignores_orientation = True
    mmcv.imfrombytes = mmcv.image.imfrombytes = imfrombytes


def _mode(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.mode
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"An image cannot be read: {error}. Unpack the data set again.") from error
