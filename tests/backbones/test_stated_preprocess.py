"""What three libraries state of preprocessing, in our words; what ours cannot say is refused."""

from __future__ import annotations

from typing import Any

import pytest

from maskclip_bench.backbones.stated_preprocess import from_huggingface, from_open_clip, from_timm
from maskclip_bench.errors import ConfigError

NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def test_open_clip() -> None:
    stated: dict[str, Any] = {
        "size": (224, 224),
        **NORM,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    found = from_open_clip(stated)
    assert found.pop("image_size") == stated.pop("size")[0]
    assert found == stated
    plain = from_open_clip({"size": 64, **NORM})
    assert (plain["image_size"], plain["interpolation"], plain["resize_mode"]) == (
        64, "bicubic", "shortest",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"resize_mode": "longest"}, "has resize_mode 'longest'"),
        ({"interpolation": "random"}, "has interpolation 'random'"),
        ({"size": (224, 196)}, "has the size 224 x 196, which is no square"),
    ],
)
def test_open_clip__refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_open_clip({"size": 224, **NORM, **changed})


TIMM = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic", **NORM}


def test_timm() -> None:
    found = from_timm(TIMM)
    assert (found["image_size"], found["resize_to"], found["resize_mode"]) == (224, 256, "shortest")
    assert from_timm({**TIMM, "crop_mode": "squash"})["resize_mode"] == "squash"
    with pytest.raises(ConfigError, match="has crop_mode 'border'"):
        from_timm({**TIMM, "crop_mode": "border"})


HUGGINGFACE: dict[str, Any] = {
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "image_processor_type": "CLIPImageProcessorFast",
}


def test_huggingface() -> None:
    found = from_huggingface(HUGGINGFACE)
    assert (found["resize_to"], found["image_size"]) == (256, 224)
    assert (found["interpolation"], found["resizer"]) == ("bicubic", "tensor")
    assert found["mean"] == pytest.approx([0.5] * 3)
    squash = from_huggingface(
        {**HUGGINGFACE, "do_center_crop": False, "size": {"height": 96, "width": 96}}
    )
    assert (squash["resize_mode"], squash["image_size"]) == ("squash", 96)
    unscaled = from_huggingface({**HUGGINGFACE, "do_rescale": False})
    assert unscaled["mean"] == pytest.approx([0.5 / 255] * 3)
    plain = from_huggingface({**HUGGINGFACE, "do_normalize": False, "do_rescale": False})
    assert plain["std"] == pytest.approx([1 / 255] * 3)
    convnext = {**HUGGINGFACE, "image_processor_type": "ConvNextImageProcessor"}
    small = from_huggingface({**convnext, "size": {"shortest_edge": 224}, "do_center_crop": False})
    assert (small["resize_to"], small["image_size"]) == (256, 224)
    large = from_huggingface({**convnext, "size": {"shortest_edge": 384}, "do_center_crop": False})
    assert (large["resize_mode"], large["image_size"]) == ("squash", 384)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"do_pad": True}, "has do_pad: True"),
        ({"do_resize": False}, "has do_resize: False"),
        ({"size": 224}, "has size: 224"),
        ({"size": {"longest_edge": 224}}, "has size: {'longest_edge': 224}"),
        ({"do_center_crop": False}, "without do_center_crop"),
        ({"crop_size": 300}, "has crop_size: 300, larger than size"),
        ({"resample": 9}, "has resample: 9"),
        ({"resample": 4}, "has resample: 4"),
        ({"image_mean": None}, "has do_normalize without image_mean and image_std"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "of other than 3 channels"),
    ],
)
def test_huggingface__refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_huggingface({**HUGGINGFACE, **changed})
