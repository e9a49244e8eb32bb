"""What a row may state about the preparation of its test images."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from maskclip_bench.config import Declaration

Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"]
"""Pillow's resize filters."""


class Preprocess(Declaration):
    """How a test image is prepared; what is left out comes from the model's own configuration."""

    image_size: PositiveInt | None = None
    """Side of the square that enters the model, in pixels."""
    resize_to: PositiveInt | None = None
    """Short side after resizing, before the centre crop; by default the image size."""
    resize_mode: Literal["shortest", "squash"] | None = None
    """shortest: keep the aspect ratio and crop the centre. squash: resize both sides."""
    interpolation: Interpolation | None = None
    """Resize filter; SLIP's protocol uses bilinear, CLIP's bicubic."""
    resizer: Literal["pillow", "tensor"] | None = None
    """pillow: resize the image. tensor: resize its tensor with torchvision, as transformers 5 does;
    sharp edges differ by several of 255 levels."""
    crop_offset: Literal["round", "floor"] | None = None
    """How half a pixel of the centre crop's position is rounded; transformers rounds down."""
    mean: tuple[float, float, float] | None = None
    """Per channel, of values 0 to 1."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Per channel, of values 0 to 1."""
