"""Attention that hooks read is the one that the forward pass computes."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer
from torch import Tensor

from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.attention_maps import (
    ALL_PATCHES,
    CLASS_TOKEN,
    last_attention,
    pooled_attention,
)
from maskclip_bench.modeling.blocks import allow_partial
from maskclip_bench.modeling.vit import vit_parts

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
NAMES = {
    "plain": ("vit_tiny_patch16_224", {}),
    "average": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 3, "no_embed_class": True}),
    "normed": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "eva02": ("eva02_tiny_patch14_224", {"patch_size": 16}),
}


def timm_vit(kind: str) -> Any:
    torch.manual_seed(0)
    name, values = NAMES[kind]
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64, "num_classes": 0}
    return timm.create_model(name, **{**sizes, **values}).eval()


def values_seen_by(trunk: Any, weights: Tensor) -> Tensor:
    """What the last block's attention gives if these are its weights, before its projection."""
    attention = trunk.blocks[-1].attn
    seen: dict[str, Tensor] = {}
    hooks = [
        attention.qkv.register_forward_hook(lambda m, a, out: seen.update(qkv=out)),
        attention.proj.register_forward_pre_hook(lambda m, a: seen.update(mixed=a[0])),
    ]
    with torch.no_grad():
        trunk.forward_features(IMAGES)
    for hook in hooks:
        hook.remove()
    batch, length, _ = seen["qkv"].shape
    value = seen["qkv"].view(batch, length, 3, 3, 16).permute(2, 0, 3, 1, 4)[2]
    torch.testing.assert_close((weights @ value).transpose(1, 2).flatten(2), seen["mixed"])
    return seen["mixed"]


@pytest.mark.parametrize("kind", ["plain", "average", "registers", "normed"])
@pytest.mark.parametrize("partial", [False, True])
def test_last_attention__is_what_mixes_the_values(kind: str, partial: bool) -> None:
    trunk = timm_vit(kind)
    if partial:
        assert all(allow_partial(block) for block in trunk.blocks)
    with torch.no_grad():
        before = trunk.forward_features(IMAGES)
    weights = last_attention(vit_parts(trunk), IMAGES)
    assert weights.shape[:2] == (2, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    values_seen_by(trunk, weights)
    with torch.no_grad():
        torch.testing.assert_close(trunk.forward_features(IMAGES), before)
    assert trunk.blocks[-1].attn.fused_attn == trunk.blocks[0].attn.fused_attn


def test_last_attention__rotary_positions() -> None:
    weights = last_attention(vit_parts(timm_vit("eva02")), IMAGES)
    assert weights.shape == (2, 3, 17, 17)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 17))


def open_clip_vit() -> OpenClipVisionTransformer:
    torch.manual_seed(0)
    return OpenClipVisionTransformer(
        image_size=64, patch_size=16, width=48, layers=2, heads=3, mlp_ratio=4.0, output_dim=8
    ).eval()


def test_last_attention__open_clip() -> None:
    trunk = open_clip_vit()
    with torch.no_grad():
        before = trunk(IMAGES)
        weights = last_attention(vit_parts(trunk), IMAGES)
        torch.testing.assert_close(trunk(IMAGES), before)
    assert weights.shape == (2, 3, 17, 17)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 17))


@pytest.mark.parametrize(
    ("kind", "whose"),
    [("plain", CLASS_TOKEN), ("registers", CLASS_TOKEN), ("average", ALL_PATCHES)],
)
def test_pooled_attention__whose_it_is(kind: str, whose: str) -> None:
    trunk = timm_vit(kind)
    maps, said = pooled_attention(trunk, IMAGES)
    assert said == whose
    assert maps.shape == (2, 16)
    torch.testing.assert_close(maps.sum(1), torch.ones(2))
    weights = last_attention(vit_parts(trunk), IMAGES).mean(1)
    prefix = trunk.num_prefix_tokens
    rows = weights[:, 0] if whose == CLASS_TOKEN else weights[:, prefix:].mean(1)
    expected = rows[:, prefix:] / rows[:, prefix:].sum(1, keepdim=True)
    torch.testing.assert_close(maps, expected)


def test_pooled_attention__no_vit() -> None:
    with pytest.raises(ConfigError, match="not a plain ViT"):
        pooled_attention(timm.create_model("resnet18", num_classes=0), IMAGES)


def test_last_attention__of_a_kind_that_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(torch.nn.Module):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return x

    trunk = timm_vit("plain")
    trunk.blocks[-1].attn = Other()
    with pytest.raises(ConfigError, match="Other in the last block shows no attention"):
        last_attention(vit_parts(trunk), IMAGES)
