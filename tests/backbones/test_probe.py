from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from maskclip_bench.backbones import Backbone, load_backbone, weights_identity
from maskclip_bench.backbones import probe as probes
from maskclip_bench.backbones.encoders import TimmEncoder
from maskclip_bench.cli.verify import items_of
from maskclip_bench.errors import ConfigError, NonFiniteError
from maskclip_bench.runtime import Workspace

from .conftest import declare

ROW = {"timm": "test_vit.r160_in1k", "random_init": True}


def load(workspace: Workspace) -> Backbone:
    return load_backbone(declare(source=ROW), workspace=workspace)


def test_identity__is_the_same_before_and_after_loading(workspace: Workspace) -> None:
    row = declare(source=ROW)
    before = weights_identity(row, workspace)
    backbone = load(workspace)
    assert backbone.identity == before == weights_identity(row, workspace)
    assert load(workspace).weights_fingerprint == backbone.weights_fingerprint


def test_other_features_under_one_identity__are_a_new_generation(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row = declare(source=ROW)
    first = load(workspace)
    original = TimmEncoder.image_outputs

    def changed(self: TimmEncoder, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"backbone": original(self, images)["backbone"].roll(1, dims=1)}

    monkeypatch.setattr(TimmEncoder, "image_outputs", changed)
    with caplog.at_level(logging.WARNING):
        second = load(workspace)
        third = load(workspace)
    assert len([r for r in caplog.records if "gives other features than" in r.message]) == 1
    assert second.identity == f"{first.identity}.1" == third.identity
    assert second.weights_fingerprint != first.weights_fingerprint
    assert weights_identity(row, workspace) == second.identity


def test_tolerance__only_between_machines(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(workspace)
    outputs = probes.probe_outputs(backbone)
    near = {name: value + 1e-6 for name, value in outputs.items()}
    with monkeypatch.context() as patch:
        patch.setattr(probes, "machine_class", lambda backbone: "another machine")
        assert probes.check_against_stored(backbone, backbone.identity, near, workspace) == 0
    assert probes.check_against_stored(backbone, backbone.identity, near, workspace) == 1


def test_damaged_probe__is_made_again(workspace: Workspace) -> None:
    load(workspace)
    (path,) = (workspace.root / "probes").rglob("*.safetensors")
    path.write_bytes(b"nothing")
    assert "." not in load(workspace).identity
    assert path.stat().st_size > 100


def test_damaged_probe__one_bit_is_damage_and_no_other_model(workspace: Workspace) -> None:
    load(workspace)
    (path,) = (workspace.root / "probes").rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-2] ^= 64
    path.write_bytes(content)
    assert probes.read_probe(path) is None
    items = [item for item in items_of(workspace) if item.kind == "probes"]
    assert [item.check() for item in items] == [["it is damaged"]]
    assert "." not in load(workspace).identity
    assert [item.check() for item in items] == [[]]
    assert items[0].fix() == "removed"


class Dropping(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(images.flatten(1)[:, :64], training=True)


def test_not_deterministic__is_refused(workspace: Workspace) -> None:
    from maskclip_bench.backbones import as_backbone

    with pytest.raises(ConfigError, match=r"other features for the same image each time"):
        as_backbone(Dropping(), image_size=16, mean=[0] * 3, std=[1] * 3)


class Centred(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        return pooled - pooled.mean(dim=0) / 2


class Padded(nn.Module):
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) + 1

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        longest = max(len(text) for text in texts)
        return torch.tensor([[len(text), longest - len(text), 1.0] for text in texts])


@pytest.mark.parametrize("model", [Centred(), Padded()])
def test_batch__features_that_depend_on_it_are_refused(model: nn.Module) -> None:
    from maskclip_bench.backbones import as_backbone

    with pytest.raises(ConfigError, match=r"in another batch .* would depend on the batch size"):
        as_backbone(model, image_size=16, mean=[0] * 3, std=[1] * 3)


class Failing(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise IndexError


def test_failing_model__is_an_error_of_the_row(workspace: Workspace) -> None:
    from maskclip_bench.backbones import as_backbone

    with pytest.raises(ConfigError, match=r"mine: the model fails on a test .* with IndexError"):
        as_backbone(Failing(), image_size=16, mean=[0] * 3, std=[1] * 3)


class Overflowing:
    feature_point = "x"

    def image_outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        values = images.flatten(1)[:, :4].float() + 1
        values[1::2] = float("inf")
        return {"backbone": values}

    def patch_tokens(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 2, 3), float("nan"))

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.full((len(texts), 2), float("nan"))


def test_gate__images_patches_texts(workspace: Workspace) -> None:
    backbone = replace(load(workspace), encoder=Overflowing(), has_text=True)
    images = torch.zeros(4, 3, 160, 160)
    with pytest.raises(
        NonFiniteError, match=r"row: backbone features of images are not finite"
    ) as e:
        backbone.image_outputs(images)
    assert e.value.rows == [1, 3]
    assert "2 of 4 inputs, computed in float32 on cpu" in str(e.value)
    with pytest.raises(NonFiniteError, match=r"patch tokens of images are not finite .* 4 of 4"):
        backbone.patch_tokens(images)
    with pytest.raises(NonFiniteError, match=r"embeddings of texts are not finite .* 2 of 2"):
        backbone.encode_text(["a", "b"])


class Shapeless(Overflowing):
    def image_outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"backbone": images}

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        raise SystemExit(0)


def test_gate__shape_and_exit(workspace: Workspace) -> None:
    backbone = replace(load(workspace), encoder=Shapeless(), has_text=True)
    with pytest.raises(ConfigError, match=r"features of images are Tensor \(2, 3, 160, 160\) for"):
        backbone.image_outputs(torch.zeros(2, 3, 160, 160))
    with pytest.raises(ConfigError, match=r"row: the encoder called exit\(0\)"):
        backbone.encode_text(["a"])


class Growing(Overflowing):
    def __init__(self, scale: float, width: int = 4, kind: torch.dtype = torch.float32) -> None:
        self.scale, self.width, self.kind = scale, width, kind

    def image_outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        values = torch.ones(len(images), self.width, dtype=self.kind) * self.scale
        self.width += 1
        return {"backbone": values}


def test_gate__vectors_whose_length_is_not_finite(workspace: Workspace) -> None:
    """All values are finite, but a division by the length would make 0 of them."""
    backbone = replace(load(workspace), encoder=Growing(3e38))
    with pytest.raises(NonFiniteError, match=r"are not finite .* for 2 of 2 inputs"):
        backbone.image_outputs(torch.zeros(2, 3, 160, 160))


class Fixed(nn.Module):
    """Gives the same features for all images."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features = features

    def image_outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"backbone": self.features}


@pytest.mark.parametrize(
    "features",
    [
        torch.zeros(2, 0),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3, device="meta"),
        torch.nested.nested_tensor([torch.ones(3)] * 2, layout=torch.jagged),
    ],
    ids=["no width", "sparse", "meta", "nested"],
)
def test_gate__what_is_no_plain_tensor(workspace: Workspace, features: torch.Tensor) -> None:
    backbone = replace(load(workspace), encoder=Fixed(features))
    with pytest.raises(ConfigError, match=r"should return a real tensor \[B, D\], dense"):
        backbone.image_outputs(torch.zeros(2, 3, 160, 160))


def test_gate__gradients_and_vectors_that_float32_cannot_hold(workspace: Workspace) -> None:
    images = torch.zeros(2, 3, 160, 160)
    backbone = replace(load(workspace), encoder=Fixed(torch.ones(2, 3).requires_grad_()))
    assert not backbone.image_outputs(images)["backbone"].requires_grad
    small = torch.tensor([[1e-60, 2e-60], [0.0, 0.0]], dtype=torch.float64)
    backbone = replace(load(workspace), encoder=Fixed(small))
    with pytest.raises(NonFiniteError, match=r"so small for 1 of 2 inputs that float32") as caught:
        backbone.image_outputs(images)
    assert caught.value.rows == [0]


def test_gate__one_width_and_real_numbers(workspace: Workspace) -> None:
    backbone = replace(load(workspace), encoder=Growing(1.0))
    backbone.image_outputs(torch.zeros(2, 3, 160, 160))
    with pytest.raises(ConfigError, match=r"have 5 numbers, and had 4 before"):
        backbone.image_outputs(torch.zeros(2, 3, 160, 160))
    backbone = replace(load(workspace), encoder=Growing(1.0, kind=torch.complex64))
    with pytest.raises(ConfigError, match=r"should return a real tensor \[B, D\]"):
        backbone.image_outputs(torch.zeros(2, 3, 160, 160))


def test_as_it_is__a_row_of_a_name_keeps_its_weights(workspace: Workspace) -> None:
    backbone = load(workspace)
    assert backbone.as_it_is() is backbone
    with torch.no_grad():
        next(backbone.model.parameters()).add_(1)
    with pytest.raises(ConfigError, match="were changed since they were loaded"):
        backbone.as_it_is()
