"""From an image file to what enters a model: resize, centre crop, normalize.

The resize filter, the sizes and the normalization move a score by more than many methods differ, so
they are part of a feature's identity (`Transform.transform_id`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.backbones.declaration import Preprocess
from maskclip_bench.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TRANSFORM_VERSION = 1
"""Part of `transform_id`; raised when the same fields give other pixels."""

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Transform:
    """PIL image -> uint8 [3, S, S]; `normalize` does the rest on the device.

    Attributes:
        image_size: S, in pixels.
        resize_to: Short side after resizing, at least S (shortest mode).
        resize_mode: "shortest" keeps the aspect ratio, "squash" does not (and never crops).
        interpolation: "bicubic" or "bilinear", Pillow's, which smooths when it shrinks.
        mean: Per channel, of values 0 to 1.
        std: Per channel, of values 0 to 1.
    """

    image_size: int
    resize_to: int
    resize_mode: Literal["shortest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.resize_to < self.image_size:
            raise ConfigError(
                f"preprocess: resize_to is {self.resize_to}, smaller than the image_size "
                f"{self.image_size} that is cropped from it. Set it to {self.image_size} or more."
            )

    @property
    def transform_id(self) -> str:
        """Hash of everything that decides the pixels."""
        return storage.fingerprint([TRANSFORM_VERSION, asdict(self)])

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize and crop one RGB image -> uint8 [3, S, S]."""
        size, kernel = self.image_size, _FILTERS[self.interpolation]
        if self.resize_mode == "squash":
            resized = image if image.size == (size, size) else image.resize((size, size), kernel)
        else:
            resized = image.resize(new, kernel) if (new := self._resized(image)) else image
            left, top = (round((side - size) / 2) for side in resized.size)
            if resized.size != (size, size):
                resized = resized.crop((left, top, left + size, top + size))
        pixels = np.array(resized, dtype=np.uint8)  # [S, S, 3]
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def _resized(self, image: Image.Image) -> tuple[int, int] | None:
        """Width and height after resizing, or None if they are right."""
        width, height = image.size
        short = min(width, height)
        if short == self.resize_to:
            return None
        new = [int(self.resize_to * side / short) for side in (width, height)]
        return max(new[0], self.resize_to), max(new[1], self.resize_to)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32, normalized; floats pass as they are."""
        if images.dtype != torch.uint8:
            return images
        scale = torch.tensor(self.std, device=images.device).mul(255).reshape(1, 3, 1, 1)
        shift = torch.tensor(self.mean, device=images.device).mul(255).reshape(1, 3, 1, 1)
        return (images.float() - shift) / scale


def make_transform(own: dict[str, Any], override: Preprocess) -> Transform:
    """A transform from the model's own configuration, with a row's deviations laid over it.

    Args:
        own: Keys as in `Preprocess`; what is missing is CLIP's habit (bicubic, no border cropped).
        override: What the row's declaration says.

    Raises:
        ConfigError: The image size is unknown, or larger than what it is cropped from.
    """
    fields = {key: value for key, value in own.items() if value is not None}
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


def from_open_clip(config: dict[str, Any]) -> dict[str, Any]:
    """open_clip's `preprocess_cfg` in our words."""
    return {
        "image_size": _square(config["size"]),
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        "resize_mode": "squash" if config["resize_mode"] == "squash" else "shortest",
    }


def from_timm(config: dict[str, Any]) -> dict[str, Any]:
    """In our words, what timm says of a model (`timm.data.resolve_model_data_config`)."""
    size = int(config["input_size"][-1])
    return {
        "image_size": size,
        "resize_to": int(size / config["crop_pct"]),
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        "resize_mode": "squash" if config.get("crop_mode") == "squash" else "shortest",
    }


def from_huggingface(config: dict[str, Any]) -> dict[str, Any]:
    """The dictionary of a Hugging Face image processor in our words."""
    size, crop = config.get("size") or {}, config.get("crop_size") or {}
    if isinstance(crop, int):
        crop = {"height": crop}
    resized = size if isinstance(size, int) else size.get("shortest_edge") or size.get("height")
    cropped = crop.get("height") if config.get("do_center_crop") else None
    squash = not isinstance(size, int) and "shortest_edge" not in size and cropped is None
    return {
        "image_size": cropped or resized,
        "resize_to": resized,
        "mean": config.get("image_mean"),
        "std": config.get("image_std"),
        "interpolation": "bilinear" if config.get("resample") == 2 else "bicubic",
        "resize_mode": "squash" if squash else "shortest",
    }


def _square(size: int | Sequence[int]) -> int:
    return int(size) if isinstance(size, int) else int(size[0])
