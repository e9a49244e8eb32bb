"""What libraries state of a model's preprocessing, in our words (the keys of `Preprocess`).

Each function raises where our words cannot say it, naming the field; the library's own transform is
used then (`transform.choose_transform`).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from maskclip_bench.errors import ConfigError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def from_open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's `preprocess_cfg` in our words.

    Raises:
        ConfigError: Our words cannot say it.
    """
    mode = config.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise ConfigError(f"has resize_mode {mode!r}")
    return {
        "image_size": _square(config["size"]),
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": _filter_name(config.get("interpolation") or "bicubic"),
        "resize_mode": mode,
    }


def from_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """In our words, what timm says of a model.

    Raises:
        ConfigError: Our words cannot say it.
    """
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ConfigError(f"has crop_mode {mode!r}")
    size = _square(config["input_size"][-2:])
    return {
        "image_size": size,
        "resize_to": int(size / config["crop_pct"]),
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": _filter_name(config["interpolation"]),
        "resize_mode": "squash" if mode == "squash" else "shortest",
    }


HUGGINGFACE_FIELDS = frozenset(
    [
        "do_convert_rgb",
        "do_resize",
        "resample",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "do_center_crop",
        "size",
        "crop_size",
        "image_mean",
        "image_std",
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "data_format",
        "input_data_format",
        "return_tensors",
        "device",
        "disable_grouping",
        "default_to_square",
        "auto_map",
        "crop_pct",
    ]
)
"""Fields of an image processor that `from_huggingface` understands, or that change no pixel."""


def from_huggingface(config: Mapping[str, Any]) -> dict[str, Any]:
    """The dictionary of an image processor of transformers in our words.

    Raises:
        ConfigError: Our words cannot say it; names the field.
    """
    for key, value in config.items():
        if key not in HUGGINGFACE_FIELDS and not key.startswith("_") and value not in (None, False):
            raise ConfigError(f"has {key}: {value!r}")
    if not config.get("do_resize", True):
        raise ConfigError(f"has do_resize: {config['do_resize']!r}")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    size = config.get("size") or {}
    if not isinstance(size, Mapping):
        raise ConfigError(f"has size: {size!r}")
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    fields: dict[str, Any] = {
        "interpolation": _resample_name(config.get("resample")),
        "resizer": "tensor" if kind.endswith("Fast") or _resizes_tensors() else "pillow",
        "crop_offset": "floor",
    }
    if fields["resizer"] == "tensor" and fields["interpolation"] in ("box", "hamming"):
        raise ConfigError(f"has resample: {config.get('resample')!r}")
    stated = {key for key, value in size.items() if value is not None}
    if stated == {"shortest_edge"}:
        fields["resize_mode"], resized = "shortest", int(size["shortest_edge"])
        if "ConvNext" in kind or config.get("crop_pct") is not None:
            fields |= _convnext_sizes(resized, config.get("crop_pct"))
        else:
            fields |= {"resize_to": resized, "image_size": resized}
            if crop is None:
                raise ConfigError("has size: {shortest_edge: ...} without do_center_crop")
    elif stated == {"height", "width"}:
        fields["resize_mode"], resized = "squash", _square((size["height"], size["width"]))
        fields |= {"resize_to": resized, "image_size": resized}
    else:
        raise ConfigError(f"has size: {dict(size)!r}")
    if crop is not None:
        fields["image_size"] = _square(
            crop if isinstance(crop, int) else (crop.get("height"), crop.get("width"))
        )
        if fields["image_size"] > fields["resize_to"]:
            raise ConfigError(f"has crop_size: {crop!r}, larger than size")
    return {**fields, **_huggingface_normalization(config)}


def _resizes_tensors() -> bool:
    """Whether the installed transformers (from version 5 on) resizes tensors by default."""
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return False
    return int(version.partition(".")[0]) >= 5


def _convnext_sizes(size: int, crop_pct: float | None) -> dict[str, Any]:
    """ConvNeXt's rule: a border is cropped below 384 pixels, from there on images are squashed."""
    if size >= 384:
        return {"resize_mode": "squash", "resize_to": size, "image_size": size}
    return {"resize_to": int(size / (crop_pct or 224 / 256)), "image_size": size}


def _huggingface_normalization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rescaling and normalization as one mean and one standard deviation, of values 0 to 1."""
    factor = 255.0
    if config.get("do_rescale", True):
        factor *= float(config.get("rescale_factor") or 1 / 255)
    mean, std = [0.0] * 3, [1.0] * 3
    if config.get("do_normalize", True):
        if config.get("image_mean") is None or config.get("image_std") is None:
            raise ConfigError("has do_normalize without image_mean and image_std")
        mean, std = ([float(v) for v in config[key]] for key in ("image_mean", "image_std"))
        if len(mean) != 3 or len(std) != 3:
            raise ConfigError(f"has image_mean: {mean!r} of other than 3 channels")
    return {"mean": [v / factor for v in mean], "std": [v / factor for v in std]}


def _filter_name(name: Any) -> str:
    if name not in FILTERS:
        raise ConfigError(f"has interpolation {name!r}")
    return str(name)


def _resample_name(resample: Any) -> str:
    """The name of Pillow's filter of that number."""
    for name, member in FILTERS.items():
        if resample is not None and int(resample) == int(member):
            return name
    raise ConfigError(f"has resample: {resample!r}")


def _square(size: int | Sequence[Any]) -> int:
    """The side of a square.

    Raises:
        ConfigError: It is none.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) == 1:
        sides = (sides[0], sides[0])
    if sides[0] is None or sides[0] != sides[1]:
        raise ConfigError(f"has the size {sides[0]} x {sides[1]}, which is no square")
    return int(sides[0])
