from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from maskclip_bench.backbones import as_backbone, missing_weights, weights_identity
from maskclip_bench.errors import CheckpointError, ConfigError, NonFiniteError
from maskclip_bench.runtime import Workspace

STATED: dict[str, Any] = {"image_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3}


class Pooled(nn.Module):
    """An image encoder: any callable, images -> [B, D]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.mean(dim=(2, 3)))


class Both(Pooled):
    def encode_image(self, images: Tensor) -> Tensor:
        return self(images)

    def encode_text(self, texts: list[str]) -> Tensor:
        return torch.tensor([[float(len(text)), 1, 2, 3, 4] for text in texts])


def photo() -> Image.Image:
    return Image.effect_noise((30, 20), 60).convert("RGB")


def test_module__is_enough_for_image_tasks() -> None:
    module = Pooled().train()
    backbone = as_backbone(module, name="mine-1", **STATED)
    pixels = backbone.transform(photo())[None]
    expected = module((pixels.float() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(backbone.forward_features(pixels), expected.detach())
    assert (backbone.name, backbone.has_text, backbone.declaration.has_text) == (
        "mine-1", False, False,
    )  # fmt: skip
    assert module.layer.weight.requires_grad
    with pytest.raises(ConfigError, match=r"mine-1 has no text tower"):
        backbone.encode_text(["a"])


def test_function_and_texts_beside_it() -> None:
    net = Pooled()
    backbone = as_backbone(
        lambda images: net(images), encode_text=lambda texts: torch.ones(len(texts), 5), **STATED
    )
    assert backbone.has_text
    assert set(backbone.image_outputs(torch.rand(2, 3, 16, 16))) == {"joint", "backbone"}
    torch.testing.assert_close(backbone.encode_text(["a"]).norm(dim=1), torch.ones(1))


def test_object_with_both_encoders() -> None:
    backbone = as_backbone(Both(), **STATED)
    assert backbone.declaration.has_text
    assert backbone.encode_text(["a", "bb"]).shape == (2, 5)


def test_identity__follows_weights_code_and_preprocessing() -> None:
    def other(images: Tensor) -> Tensor:
        return net(images) * 2

    net = Pooled()
    found = [
        as_backbone(net, **STATED),
        as_backbone(Pooled(1), **STATED),
        as_backbone(other, **STATED),
        as_backbone(net, **{**STATED, "mean": [0.4] * 3}),
        as_backbone(net, **STATED, interpolation="bilinear"),
    ]
    assert len({backbone.identity for backbone in found}) == len(found)
    assert as_backbone(Pooled(), **STATED).identity == found[0].identity


def test_identity__own_fingerprint() -> None:
    net = Pooled()
    net.fingerprint = lambda: "version 1"
    first = as_backbone(net, **STATED).identity
    with torch.no_grad():
        net.layer.bias += 1
    assert as_backbone(net, **STATED).identity == first


def test_preprocess__a_function() -> None:
    def prepare(image: Image.Image) -> Tensor:
        return torch.full((3, 16, 16), image.width / 100)

    backbone = as_backbone(Pooled(), preprocess=prepare)
    assert backbone.image_size == 16
    assert backbone.transform(photo()).unique().tolist() == pytest.approx([0.3])
    with pytest.raises(ConfigError, match=r"states no mean and std, which image windows need"):
        backbone.forward_features(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"own preprocess returned Tensor \(3, 16\). It should"):
        as_backbone(Pooled(), preprocess=lambda image: torch.zeros(3, 16))
    with pytest.raises(ConfigError, match=r"which make no batch. State image_size"):
        as_backbone(Pooled(), preprocess=lambda image: torch.zeros(3, image.height, image.width))


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (3, STATED, "A int is no encoder"),
        (Pooled(), {"image_size": 16}, "preprocessing is not stated: mean, std"),
        (Pooled(), {**STATED, "name": "a/b"}, "'a/b' cannot name a row"),
        (Pooled(), {**STATED, "precision": "fp8"}, "'fp8' is no precision. Use one of float32"),
        (Pooled(), {**STATED, "std": (1, 1, 0)}, r"'preprocess.std.2': .* greater than 0"),
        (Pooled(), {**STATED, "mean": (0, float("nan"), 0)}, "finite number"),
        (Pooled(), {**STATED, "image_size": -4}, r"'preprocess.image_size': .* greater than 0"),
        (Pooled(), {**STATED, "world": "mars"}, "'world': .* 'demo' or 'real'"),
        (Pooled(), {**STATED, "name": "\u00fc"}, "cannot name a row, because files are called"),
        (Pooled(), {**STATED, "name": "a__seed1"}, "the row of 'a' with that seed has the same"),
        (lambda images: images, STATED, r"features of images are Tensor \(3, 3, 16, 16\) for 3"),
    ],
)
def test_problems(module: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_backbone(module, **options)


def test_weights_that_are_not_finite_are_named() -> None:
    net = Pooled()
    with torch.no_grad():
        net.layer.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"mine: 1 tensors of its weights .*layer.weight"):
        as_backbone(net, **STATED)


def test_row__cannot_be_loaded_again(workspace: Workspace) -> None:
    row = as_backbone(Pooled(), **STATED).declaration
    assert "memory of another process" in str(missing_weights(row, workspace))
    assert weights_identity(row, workspace).startswith("unknown-")
    with pytest.raises(CheckpointError, match=r"mine is a model in memory"):
        row.family.load(row, workspace, 0)


def test_as_it_is__follows_what_was_changed_in_place() -> None:
    model = Pooled()
    model.register_parameter("gain", torch.nn.Parameter(torch.ones(1)))
    backbone = as_backbone(model, **STATED)
    assert backbone.as_it_is() is backbone
    with torch.no_grad():
        model.gain.mul_(2)
    changed = backbone.as_it_is()
    assert changed.weights_fingerprint != backbone.weights_fingerprint
    assert changed.identity != backbone.identity
    with torch.no_grad():
        model.gain.div_(2)
    assert backbone.as_it_is() is backbone
    model.note = "another"
    assert backbone.as_it_is().identity not in (backbone.identity, changed.identity)
