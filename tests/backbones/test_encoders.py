"""Patch tokens and trunks of timm's and open_clip's models."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from maskclip_bench.backbones.encoders import (
    OpenClipEncoder,
    TimmEncoder,
    timm_patch_tokens,
    vision_trunk,
)
from maskclip_bench.errors import ConfigError

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def clip(**vision: Any) -> CLIP:
    torch.manual_seed(0)
    config = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 1}
    return CLIP(embed_dim=8, vision_cfg={**config, **vision}, text_cfg=TEXT).eval()


@torch.no_grad()
@pytest.mark.parametrize("tokens", [0, 3])
def test_timm__patch_tokens_are_without_the_prefix(tokens: int) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, reg_tokens=tokens, **TINY)
    expected = model.eval().forward_features(images())
    found = TimmEncoder(model).patch_tokens(images())
    assert torch.equal(found, expected[:, 1 + tokens :]) and found.shape == (2, 16, 24)


@torch.no_grad()
def test_timm__patch_tokens_of_maps_and_of_relative_positions() -> None:
    net = timm.create_model("test_convnext", num_classes=0).eval()
    maps = net.forward_features(images())
    assert torch.equal(timm_patch_tokens(net, images()), maps.flatten(2).transpose(1, 2))
    beit = timm.create_model("beit_base_patch16_224", num_classes=0, **TINY).eval()
    assert torch.equal(timm_patch_tokens(beit, images()), beit.forward_features(images())[:, 1:])


@torch.no_grad()
def test_open_clip__patch_tokens_are_as_its_own_pass_gives_them() -> None:
    model = clip()
    visual: Any = model.visual
    expected = visual.ln_post(visual.transformer(visual._embeds(images())))[:, 1:]
    assert torch.equal(OpenClipEncoder(model, lambda texts: texts).patch_tokens(images()), expected)
    coca = clip(attentional_pool=True, attn_pooler_heads=2)
    visual = coca.visual
    expected = visual.transformer(visual._embeds(images()))[:, 1:]  # its norm is of the pooler
    assert torch.equal(OpenClipEncoder(coca, lambda texts: texts).patch_tokens(images()), expected)


def test_open_clip__a_resnet_has_no_patch_tokens() -> None:
    model = clip(layers=(1, 1, 1, 1), width=16, head_width=16)
    with pytest.raises(ConfigError, match="ModifiedResNet gives no patch tokens"):
        OpenClipEncoder(model, lambda texts: texts).patch_tokens(images())


def test_vision_trunk__of_a_model_its_tower_or_nothing() -> None:
    model = clip()
    assert vision_trunk(model) is vision_trunk(model.visual) is model.visual
    with pytest.raises(ConfigError, match=r"Linear gives no feature maps that OpenMMLab heads can"):
        vision_trunk(nn.Linear(2, 2))
