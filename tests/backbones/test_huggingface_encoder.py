"""Pooling by type of model, on stand-ins for transformers' models (its own are in families/)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskclip_bench.backbones.huggingface_encoder import HuggingFaceEncoder
from maskclip_bench.errors import ConfigError

HIDDEN = torch.arange(24.0).reshape(1, 6, 4)


class Tower(nn.Module):
    """Gives six tokens, whatever the image."""

    def __init__(self, model_type: str, **more: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(model_type=model_type, **more)
        self.pooled: Tensor | None = torch.ones(1, 4, 1, 1)

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=HIDDEN, pooler_output=self.pooled)


class TwoTowers(Tower):
    """A model of images and texts of a type that is not known here."""

    features: Any = torch.tensor([[3.0, 4.0]])

    def get_image_features(self, pixel_values: Tensor) -> Any:
        return self.features

    def get_text_features(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(pooler_output=torch.tensor([[0.0, 2.0]]))


IMAGES = torch.zeros(1, 3, 8, 8)


def test_first_token_mean_and_own_pooler() -> None:
    first = HuggingFaceEncoder(Tower("deit"), None)
    assert torch.equal(first.image_outputs(IMAGES)["backbone"], HIDDEN[:, 0])
    assert torch.equal(first.patch_tokens(IMAGES), HIDDEN[:, 2:])
    registers = HuggingFaceEncoder(Tower("dinov3_vit", num_register_tokens=4), None)
    assert torch.equal(registers.patch_tokens(IMAGES), HIDDEN[:, 5:])
    mean = HuggingFaceEncoder(Tower("beit"), None)
    assert torch.equal(mean.image_outputs(IMAGES)["backbone"], HIDDEN[:, 1:].mean(1))
    pooler = HuggingFaceEncoder(Tower("convnext"), None)
    assert pooler.image_outputs(IMAGES)["backbone"].shape == (1, 4)
    assert not pooler.has_text


def test_without_its_pooler() -> None:
    tower = Tower("swin")
    tower.pooled = None
    with pytest.raises(ConfigError, match="Tower was built without its pooler"):
        HuggingFaceEncoder(tower, None).image_outputs(IMAGES)


def test_unknown_type() -> None:
    with pytest.raises(ConfigError, match=r"Tower \(model_type 'new'\) is not among the types"):
        HuggingFaceEncoder(Tower("new"), None)


def test_two_towers_of_an_unknown_type__have_joint_features_alone() -> None:
    encoder = HuggingFaceEncoder(TwoTowers("new"), lambda texts: {"input_ids": torch.zeros(1)})
    assert encoder.has_text
    assert torch.allclose(encoder.image_outputs(IMAGES)["joint"], torch.tensor([[0.6, 0.8]]))
    assert torch.equal(encoder.encode_text(["a"]), torch.tensor([[0.0, 1.0]]))
    with pytest.raises(ConfigError):
        encoder.patch_tokens(IMAGES)
    encoder.model.features = HIDDEN
    with pytest.raises(ConfigError, match=r"gives \(1, 6, 4\) instead of one vector for each"):
        encoder.image_outputs(IMAGES)
    with pytest.raises(ConfigError):
        HuggingFaceEncoder(Tower("vit"), None).encode_text(["a"])
