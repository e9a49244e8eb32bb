from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from maskclip_bench.backbones import transform as transform_module
from maskclip_bench.backbones.declaration import Preprocess
from maskclip_bench.backbones.transform import (
    Transform,
    choose_transform,
    from_huggingface,
    from_open_clip,
    from_timm,
    make_transform,
    of_open_clip,
    of_timm,
    probe_images,
)
from maskclip_bench.errors import ConfigError


def photo(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(64, 64), (50, 31), (31, 50), (33, 32), (20, 90), (32, 32)])
@pytest.mark.parametrize(("resize_to", "filter_name"), [(32, "bicubic"), (37, "bilinear")])
def test_transform__equals_torchvisions(
    size: tuple[int, int], resize_to: int, filter_name: str
) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    mode = InterpolationMode.BICUBIC if filter_name == "bicubic" else InterpolationMode.BILINEAR
    oracle = Compose([Resize(resize_to, mode), CenterCrop(32), ToTensor(), Normalize(mean, std)])
    ours = Transform(32, resize_to, interpolation=filter_name, mean=mean, std=std)  # type: ignore[arg-type]
    image = photo(*size)
    pixels = ours(image)
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(ours.normalize(pixels[None])[0], oracle(image), atol=1e-5, rtol=1e-5)


def test_transform__squash_keeps_everything() -> None:
    image = photo(60, 30)
    found = Transform(32, 32, resize_mode="squash")(image)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_normalize__floats_pass() -> None:
    images = torch.randn(2, 3, 4, 4)
    assert Transform(4, 4).normalize(images) is images


def test_transform_id__follows_every_field() -> None:
    base = Transform(32, 32)
    others = [
        Transform(32, 36),
        Transform(32, 32, resize_mode="squash"),
        Transform(32, 32, interpolation="bilinear"),
        Transform(32, 32, mean=(0.5, 0.5, 0.5)),
    ]
    assert len({base.transform_id, *(other.transform_id for other in others)}) == 5
    assert base.transform_id == Transform(32, 32).transform_id


def test_make_transform__override_and_its_ratio() -> None:
    own = {"image_size": 224, "resize_to": 256, "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert make_transform(own, Preprocess()).resize_to == 256
    small = make_transform(own, Preprocess(image_size=112, interpolation="bilinear"))
    assert (small.image_size, small.resize_to, small.interpolation) == (112, 128, "bilinear")
    assert make_transform({"image_size": 224}, Preprocess()).resize_to == 224


def test_make_transform__problems() -> None:
    with pytest.raises(ConfigError, match="does not say its image size"):
        make_transform({}, Preprocess())
    with pytest.raises(ConfigError, match="resize_to is 100, smaller than the image_size 224"):
        make_transform({"image_size": 224}, Preprocess(resize_to=100))


def test_from_libraries() -> None:
    open_clip = {
        "size": (224, 224), "mode": "RGB", "mean": (0.5,) * 3, "std": (0.5,) * 3,
        "interpolation": "bicubic", "resize_mode": "squash", "fill_color": 0,
    }  # fmt: skip
    assert from_open_clip(open_clip)["image_size"] == 224
    assert from_open_clip(open_clip)["resize_mode"] == "squash"
    timm = {
        "input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic",
        "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_mode": "center",
    }  # fmt: skip
    assert from_timm(timm)["resize_to"] == 256
    clip = {
        "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    found = from_huggingface(clip)
    assert (found["image_size"], found["resize_to"], found["resize_mode"]) == (224, 256, "shortest")
    siglip = {
        "size": {"height": 384, "width": 384},
        "resample": 2,
        "do_center_crop": None,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    found = from_huggingface(siglip)
    assert (found["image_size"], found["resize_mode"], found["interpolation"]) == (
        384, "squash", "bilinear",
    )  # fmt: skip


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(7, 400), (401, 9), (300, 13)])
def test_long_image__is_resized_around_the_crop_alone(
    size: tuple[int, int], interpolation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    transform = Transform(24, 30, interpolation=interpolation)
    ours = transform(image).int()
    monkeypatch.setattr(transform_module, "LONG", 10**9)
    whole = transform(image).int()
    assert (ours - whole).abs().max() <= 1


@pytest.mark.parametrize("resizer", ["pillow", "tensor"])
@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (2, 100_001)])
def test_long_image__is_never_resized_as_a_whole(
    resizer: Any, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    by_pillow, by_torchvision = Image.Image.resize, transform_module.functional.resize

    def pillow(image: Image.Image, new: tuple[int, int], *rest: Any, **more: Any) -> Image.Image:
        made.append(new[0] * new[1])
        return by_pillow(image, new, *rest, **more)

    def torchvision(pixels: torch.Tensor, new: list[int], *rest: Any, **more: Any) -> torch.Tensor:
        made.append(new[0] * new[1])
        return by_torchvision(pixels, new, *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", pillow)
    monkeypatch.setattr(transform_module.functional, "resize", torchvision)
    image = Image.new("RGB", size, (200, 30, 90))
    pixels = Transform(224, 256, resizer=resizer)(image)
    assert pixels.shape == (3, 224, 224)
    assert pixels.flatten(1).float().mean(1).tolist() == [200, 30, 90]
    assert max(made) <= 17 * 256 * 256


def chosen(found: dict[str, Any], **override: Any) -> Transform:
    return choose_transform(
        found["preprocess"],
        Preprocess(**override),
        library=found["library_transform"],
        inexpressible=found.get("inexpressible"),
        what="row",
    )


TIMM = {
    "input_size": (3, 32, 32), "crop_pct": 0.9, "interpolation": "bicubic",
    "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "crop_mode": "center",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        ({}, True),
        ({"crop_mode": "squash"}, True),
        ({"crop_mode": "squash", "crop_pct": 1.0}, True),
        ({"interpolation": "lanczos"}, True),
        ({"crop_mode": "border"}, False),
        ({"input_size": (3, 32, 48)}, False),
    ],
    ids=str,
)
def test_timm__every_mode_gives_timms_pixels(change: dict[str, Any], ours: bool) -> None:
    config = {**TIMM, **change}
    transform = chosen(of_timm(config))
    assert (transform.library is None) == ours
    oracle = create_transform(**config, is_training=False)
    for image in probe_images(32):
        pixels = transform.normalize(transform(image)[None])[0]
        torch.testing.assert_close(pixels, oracle(image), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("change", "ours"),
    [({}, True), ({"resize_mode": "squash"}, True), ({"resize_mode": "longest"}, False)],
    ids=str,
)
def test_open_clip__every_mode_gives_open_clips_pixels(change: dict[str, Any], ours: bool) -> None:
    config = {
        "size": 32, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3),
        "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0, **change,
    }  # fmt: skip
    transform = chosen(of_open_clip(config))
    assert (transform.library is None) == ours
    oracle = open_clip.image_transform(
        (32, 32),
        is_train=False,
        mean=config["mean"],
        std=config["std"],
        interpolation="bicubic",
        resize_mode=config["resize_mode"],
    )
    for image in probe_images(32):
        pixels = transform.normalize(transform(image)[None])[0]
        torch.testing.assert_close(pixels, oracle(image), atol=0.05, rtol=0)


def test_library_transform__cannot_be_changed_in_part() -> None:
    border = of_timm({**TIMM, "crop_mode": "border"})
    with pytest.raises(ConfigError, match=r"row: .* has crop_mode 'border'.*State all of image_si"):
        chosen(border, interpolation="bilinear")
    whole = {
        "image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash",
        "interpolation": "bilinear",
    }  # fmt: skip
    assert chosen(border, **whole).library is None
    rectangle = {**TIMM, "crop_mode": "border", "mean": (0.1, 0.2, 0.3)}
    assert chosen(of_timm(rectangle)).transform_id != chosen(border).transform_id


def test_library_transform__that_differs_is_used() -> None:
    def library(image: Image.Image) -> torch.Tensor:
        return torch.full((3, 32, 32), 0.5)

    own = {"image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    found = {"preprocess": own, "library_transform": library}
    transform = chosen(found)
    assert transform.library is library
    assert transform.mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match=r"differs from ours by .* of 255 levels"):
        chosen(found, image_size=16)
    with pytest.raises(ConfigError, match=r"and normalizes by itself"):
        chosen(found, mean=(0.1, 0.1, 0.1))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 32}}, "longest_edge"),
        ({"size": 32}, "size: 32"),
        ({"size": {"height": 32, "width": 48}}, "no square"),
        ({"size": {"shortest_edge": 32}}, "without do_center_crop"),
        ({"do_center_crop": True, "crop_size": {"height": 64, "width": 64}}, "larger than size"),
        ({"resample": 99}, "resample"),
        ({"image_mean": None}, "do_normalize without image_mean"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "other than 3 channels"),
    ],
    ids=str,
)
def test_from_huggingface__names_the_field(change: dict[str, Any], field: str) -> None:
    config = {
        "size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, **change,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=field):
        from_huggingface(config)


def test_from_huggingface__convnext_and_rescaling() -> None:
    config = {
        "image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875, "resample": 3,
        "size": {"shortest_edge": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "rescale_factor": 1 / 127.5,
    }  # fmt: skip
    found = from_huggingface(config)
    assert (found["image_size"], found["resize_to"]) == (224, 256)
    assert found["mean"] == pytest.approx([0.25] * 3)
    assert found["std"] == pytest.approx([0.25] * 3)
    large = from_huggingface({**config, "size": {"shortest_edge": 384}})
    assert (large["resize_mode"], large["image_size"], large["resize_to"]) == ("squash", 384, 384)
