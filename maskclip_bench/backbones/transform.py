"""From an image to what enters a model: resize, centre crop, normalize.

The resize filter, the sizes and the normalization move a score by more than many methods differ, so
they are part of a feature's identity (`Transform.transform_id`). What our transform cannot say of a
library's is not dropped: at load both are compared on probe images, and where they differ the
library's own is used (`choose_transform`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from maskclip_bench import storage
from maskclip_bench.backbones.preprocess import Interpolation, Preprocess
from maskclip_bench.backbones.stated_preprocess import (
    FILTERS,
    from_huggingface,
    from_open_clip,
    from_timm,
)
from maskclip_bench.errors import ConfigError
from maskclip_bench.normalization import IMAGENET_MEAN, IMAGENET_STD

__all__ = [
    "HuggingFaceTransform",
    "Transform",
    "choose_transform",
    "difference",
    "from_huggingface",
    "from_open_clip",
    "from_timm",
    "make_transform",
    "of_huggingface",
    "of_open_clip",
    "of_timm",
    "probe_images",
]

TRANSFORM_VERSION = 2
"""Part of `transform_id`; raised when the same fields give other pixels."""

LEVELS = 2.5
"""Largest difference of a pixel, of 255 levels, between our transform and a library's that counts
as equal: libraries round between their steps, some resize tensors instead of images."""

LONG = 16
"""Long side over short side from which only the part is resized that the crop will show: the whole
of a 1 x 10000 image, resized, takes gigabytes."""

LibraryTransform = Callable[[Image.Image], Tensor]
"""PIL image -> float [3, H, W], normalized."""


@dataclass(frozen=True)
class Transform:
    """PIL image -> uint8 [3, S, S]; `normalize` does the rest on the device.

    Attributes:
        image_size: S, in pixels.
        resize_to: Short side after resizing, at least S.
        resize_mode: "shortest" keeps the aspect ratio, "squash" makes a square of that side.
        interpolation: A filter of Pillow's, which smooths when it shrinks.
        resizer: "pillow" resizes the image, "tensor" its tensor with torchvision.
        crop_offset: "round" or "floor": half a pixel in the position of the centre crop.
        mean: Per channel, of values 0 to 1; None = not known (`library` normalizes).
        std: Per channel, of values 0 to 1; None likewise.
        library: Used instead of all of this: PIL image -> float [3, H, W], normalized.
        library_id: What `library` does, as text.
    """

    image_size: int
    resize_to: int
    resize_mode: Literal["shortest", "squash"] = "shortest"
    interpolation: Interpolation = "bicubic"
    resizer: Literal["pillow", "tensor"] = "pillow"
    crop_offset: Literal["round", "floor"] = "round"
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    std: tuple[float, ...] | None = IMAGENET_STD
    library: LibraryTransform | None = None
    library_id: str = ""

    def __post_init__(self) -> None:
        if self.resize_to < self.image_size:
            raise ConfigError(
                f"preprocess: resize_to is {self.resize_to}, smaller than the image_size "
                f"{self.image_size} that is cropped from it. Set it to {self.image_size} or more."
            )

    @property
    def transform_id(self) -> str:
        """Hash of everything that decides the pixels."""
        fields = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name != "library"
        }
        return storage.fingerprint([TRANSFORM_VERSION, fields])

    def __call__(self, image: Image.Image) -> Tensor:
        """One RGB image -> uint8 [3, S, S]; with `library` float [3, H, W], normalized."""
        if self.library is not None:
            return self._checked(self.library(image))
        size, new = self.image_size, self._resized(image)
        if new is not None and max(new) > LONG * min(new):
            image, new = self._around_the_crop(image, new)
        if new is not None and self.resizer == "pillow":
            image = image.resize(new, FILTERS[self.interpolation])
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)  # [3, H, W]
        if new is not None and self.resizer == "tensor":
            nearest = self.interpolation == "nearest"
            mode = InterpolationMode("nearest-exact" if nearest else self.interpolation)
            pixels = functional.resize(pixels, [new[1], new[0]], mode, antialias=True)
        top, left = (self._offset(side) for side in pixels.shape[1:])
        return pixels[:, top : top + size, left : left + size].contiguous()

    def _offset(self, side: int) -> int:
        """Where the crop begins along a side of the resized image."""
        half = (side - self.image_size) / 2
        return round(half) if self.crop_offset == "round" else int(half)

    def _around_the_crop(
        self, image: Image.Image, new: tuple[int, int]
    ) -> tuple[Image.Image, tuple[int, int] | None]:
        """A very long image before its crop, in bounded time and memory.

        Pillow resizes just the part that the crop shows, to the same pixels up to one level; for a
        tensor, the image is cut to its middle, whose resized size is returned.
        """
        if self.resizer == "tensor":
            most = LONG * min(image.size)
            left, top = (max(0, (side - most) // 2) for side in image.size)
            middle = image.crop((left, top, image.size[0] - left, image.size[1] - top))
            return middle, self._resized(middle)
        ranges = [
            _needed(side, resized, self._offset(resized), self.image_size)
            for side, resized in zip(image.size, new, strict=True)
        ]
        (left, right, box_left, box_right), (top, bottom, box_top, box_bottom) = ranges
        part = image.crop((left, top, right, bottom))
        shown = (self.image_size, self.image_size)
        box = (box_left, box_top, box_right, box_bottom)
        return part.resize(shown, FILTERS[self.interpolation], box=box), None

    def _resized(self, image: Image.Image) -> tuple[int, int] | None:
        """Width and height after resizing, or None if they are right."""
        width, height = image.size
        if self.resize_mode == "squash":
            side = self.resize_to
            return None if (width, height) == (side, side) else (side, side)
        short = min(width, height)
        if short == self.resize_to:
            return None
        new = [int(self.resize_to * side / short) for side in (width, height)]
        return max(new[0], self.resize_to), max(new[1], self.resize_to)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32, normalized; floats pass as they are.

        Raises:
            ConfigError: Mean and standard deviation are not known.
        """
        if images.dtype != torch.uint8:
            return images
        if self.mean is None or self.std is None:
            raise ConfigError(
                "The model brings a transform of its own and states no mean and std, which image "
                "windows need. State both under preprocess:."
            )
        scale = torch.tensor(self.std, device=images.device).mul(255).reshape(1, 3, 1, 1)
        shift = torch.tensor(self.mean, device=images.device).mul(255).reshape(1, 3, 1, 1)
        return (images.float() - shift) / scale

    @staticmethod
    def _checked(pixels: Any) -> Tensor:
        if not isinstance(pixels, Tensor) or pixels.ndim != 3 or not pixels.is_floating_point():
            shape = tuple(getattr(pixels, "shape", ()))
            raise ConfigError(
                f"The model's own preprocess returned {type(pixels).__name__} {shape}. It should "
                "return a float tensor [3, H, W], normalized."
            )
        return pixels.float()


def _needed(side: int, resized: int, offset: int, size: int) -> tuple[int, int, float, float]:
    """Along one side: the source pixels that `size` pixels of the resized image are made of.

    Args:
        side: Pixels of the image.
        resized: Pixels of the resized image.
        offset: First pixel of the crop.
        size: Pixels of the crop.

    Returns:
        First source pixel, the one after the last (with a margin for the filter), and where the
        crop begins and ends, counted from the first.
    """
    scale = side / resized
    begin, end = offset * scale, (offset + size) * scale
    margin = math.ceil(3 * max(scale, 1)) + 2  # Lanczos reaches 3 pixels
    first = max(0, math.floor(begin) - margin)
    last = min(side, math.ceil(end) + margin)
    return first, last, begin - first, min(end - first, last - first)


def make_transform(own: Mapping[str, Any], override: Preprocess) -> Transform:
    """A transform from the model's own configuration, with a row's deviations laid over it.

    Args:
        own: Keys as in `Preprocess`; what is missing is CLIP's habit (bicubic, no border cropped).
        override: What the row's declaration says.

    Raises:
        ConfigError: The image size is unknown, or larger than what it is cropped from; a key of
            `own` is unknown.
    """
    fields = {key: value for key, value in own.items() if value is not None}
    unknown = sorted(set(fields) - set(Preprocess.model_fields))
    if unknown:
        raise ConfigError(
            f"The model's preprocess has the unknown key {unknown[0]!r}. Known keys: "
            f"{', '.join(Preprocess.model_fields)}."
        )
    chosen = override.model_dump(exclude_none=True)
    if "image_size" in chosen and "resize_to" not in chosen and "image_size" in fields:
        ratio = fields.get("resize_to", fields["image_size"]) / fields["image_size"]
        fields["resize_to"] = round(chosen["image_size"] * ratio)
    fields.update(chosen)
    if "image_size" not in fields:
        raise ConfigError(
            "The model does not say its image size. Set preprocess: {image_size: ...}"
        )
    fields.setdefault("resize_to", fields["image_size"])
    for key in ("mean", "std"):
        if key in fields:
            fields[key] = tuple(float(value) for value in fields[key])
    return Transform(**fields)


def choose_transform(
    own: Mapping[str, Any],
    override: Preprocess,
    *,
    library: LibraryTransform | None,
    inexpressible: str | None,
    what: str,
) -> Transform:
    """Our transform where it does what the library's own does, else the library's own.

    Args:
        own: The model's own preprocessing, with the keys of `Preprocess`.
        override: What the row's declaration says.
        library: The library's own test transform; None where there is none.
        inexpressible: What of it `own` cannot say.
        what: The row, for messages.

    Raises:
        ConfigError: The row changes a part of what only the library can do, or that gives images
            of several sizes.
    """
    if library is None:
        return make_transform(own, override)
    problem = inexpressible
    if problem is None:
        problem = difference(make_transform(own, Preprocess()), library)
    if problem is None:
        return make_transform(own, override)
    stated = override.model_dump(exclude_none=True)
    needed = {"image_size", "mean", "std", "resize_mode", "interpolation"}
    if needed <= set(stated):
        return make_transform({}, override)
    if stated and not set(stated) <= {"mean", "std"}:
        raise ConfigError(
            f"{what}: the model's own preprocessing {problem}, so that the row cannot change a "
            f"part of it. State all of {', '.join(sorted(needed))} under preprocess:, or nothing."
        )
    if stated and own.get("mean") is not None:
        raise ConfigError(
            f"{what}: the model's own preprocessing {problem}, and normalizes by itself. State "
            f"all of {', '.join(sorted(needed))} under preprocess:, or nothing."
        )
    return _of_library(library, own, override, what)


def _of_library(
    library: LibraryTransform, own: Mapping[str, Any], override: Preprocess, what: str
) -> Transform:
    """A transform that calls the library's.

    Raises:
        ConfigError: It gives images of several sizes.
    """
    shapes = {tuple(Transform._checked(library(image)).shape) for image in probe_images(64)}
    if len(shapes) != 1 or next(iter(shapes))[0] != 3:
        raise ConfigError(
            f"{what}: the model's own preprocessing gives images of the shapes {sorted(shapes)}, "
            "which make no batch. State image_size, mean, std, resize_mode and interpolation "
            "under preprocess:."
        )
    side = max(next(iter(shapes))[1:])
    mean, std = override.mean or own.get("mean"), override.std or own.get("std")
    return Transform(
        image_size=side,
        resize_to=side,
        interpolation=own.get("interpolation") or "bicubic",
        mean=None if mean is None else tuple(float(value) for value in mean),
        std=None if std is None else tuple(float(value) for value in std),
        library=library,
        library_id=describe(library),
    )


def describe(library: LibraryTransform) -> str:
    """What a transform does, as a text without addresses in memory."""
    own = getattr(library, "describe", None)
    text = str(own()) if callable(own) else repr(library)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def probe_images(size: int) -> list[Image.Image]:
    """Wide, tall, square, small images with sharp edges, around `size` pixels; always the same."""
    generator = np.random.default_rng(20221)
    shapes = [
        (2 * size + 13, size + 7),
        (size + 8, 2 * size + 22),
        (size + 31, size + 31),
        (size // 2 + 3, size // 2),
        (size, size + 1),
    ]
    images = []
    for width, height in shapes:
        coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        pixels = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
        images.append(Image.fromarray(np.ascontiguousarray(pixels)))
    return images


def difference(ours: Transform, library: LibraryTransform) -> str | None:
    """How our transform differs from a library's on the probe images; None where it does not."""
    for image in probe_images(ours.image_size):
        theirs = Transform._checked(library(image))
        found = ours.normalize(ours(image)[None])[0]
        if found.shape != theirs.shape:
            return f"makes {tuple(theirs.shape)} of a {image.width} x {image.height} image"
        assert ours.std is not None
        scale = torch.tensor(ours.std).abs().reshape(3, 1, 1) * 255
        levels = float(((found - theirs).abs() * scale).max())
        if not levels <= LEVELS:
            return (
                f"differs from ours by {levels:.0f} of 255 levels on a {image.width} x "
                f"{image.height} image"
            )
    return None


# --- what libraries say, in our words -------------------------------------------------------------


def of_open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `Loaded` needs of open_clip's `preprocess_cfg`."""
    import open_clip

    size = config["size"]
    sides = (size, size) if isinstance(size, int) else tuple(size)
    library = open_clip.image_transform(
        sides,
        is_train=False,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize_mode=config.get("resize_mode"),
        interpolation=config.get("interpolation"),
        fill_color=config.get("fill_color", 0),
    )
    return _described(lambda: from_open_clip(config), library)


def of_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `Loaded` needs of timm's data config (`timm.data.resolve_model_data_config`)."""
    from timm.data.transforms_factory import create_transform

    names = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    library = create_transform(**{name: config[name] for name in names}, is_training=False)
    return _described(lambda: from_timm(config), library)


class HuggingFaceTransform:
    """An image processor of transformers as a function of one image."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image -> float [3, H, W]."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def describe(self) -> str:
        """All of its fields."""
        return storage.fingerprint(self.processor.to_dict(), length=64)


def of_huggingface(processor: Any) -> dict[str, Any]:
    """What `Loaded` needs of an image processor of transformers."""
    library = HuggingFaceTransform(processor)
    found = _described(lambda: from_huggingface(processor.to_dict()), library)
    if found["preprocess"]:  # its dictionary does not say whether it resizes images or tensors
        for resizer in ("tensor", "pillow"):
            own = {**found["preprocess"], "resizer": resizer}
            if difference(make_transform(own, Preprocess()), library) is None:
                return {**found, "preprocess": own}
    return found


def _described(words: Callable[[], dict[str, Any]], library: LibraryTransform) -> dict[str, Any]:
    """Our words for a library's transform, or why there are none."""
    try:
        return {"preprocess": words(), "library_transform": library}
    except ConfigError as error:
        return {"preprocess": {}, "library_transform": library, "inexpressible": str(error)}
