"""A ViT put together from its parts is the library's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer
from torch import Tensor, nn

from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.vit import is_vit, visible_ropes, vit_parts

SIZES: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}

TRUNKS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 3, "no_embed_class": True}),
    "average": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "deit": ("deit_tiny_distilled_patch16_224", {}),
    "eva02": ("eva02_tiny_patch14_224", {"patch_size": 16}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", {}),
}


def timm_vit(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    name, values = TRUNKS[kind]
    values = {"num_classes": 0, "img_size": 64, **SIZES, **values, **changes}
    return timm.create_model(name, **values).eval()


def open_clip_vit(**changes: Any) -> OpenClipVisionTransformer:
    torch.manual_seed(0)
    values = {"image_size": 64, "patch_size": 16, "width": 48, "layers": 2, "heads": 3, **changes}
    return OpenClipVisionTransformer(mlp_ratio=4.0, output_dim=8, output_tokens=True, **values)


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", TRUNKS)
def test_timm_vit__whole_equals_timm(kind: str) -> None:
    trunk = timm_vit(kind)
    vit = vit_parts(trunk)
    assert is_vit(trunk)
    assert (vit.num_patches, vit.grid_size, vit.patch_size) == (16, (4, 4), (16, 16))
    assert (vit.embed_dim, vit.num_heads, len(vit.blocks)) == (48, 3, 2)
    expected = trunk.forward_features(images())
    assert expected.shape[1] == vit.num_prefix_tokens + 16
    torch.testing.assert_close(vit.whole(images()), expected)
    maps = vit.patch_map(images())
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), vit.patches(images()))


def test_open_clip_vit__whole_equals_open_clip() -> None:
    trunk = open_clip_vit()
    vit = vit_parts(trunk)
    assert (vit.num_prefix_tokens, vit.grid_size, vit.num_heads) == (1, (4, 4), 3)
    _, patches = trunk(images())
    torch.testing.assert_close(vit.whole(images())[:, 1:], patches)
    assert vit.ropes() is None


@pytest.mark.parametrize("kind", ["plain", "eva02", "rope_mixed"])
def test_visible_patches__equal_a_pass_over_each_image_alone(kind: str) -> None:
    vit = vit_parts(timm_vit(kind))
    patches, ropes = vit.embed(images()), vit.ropes()
    ids = torch.tensor([[0, 5, 9], [2, 3, 15]])
    visible = torch.stack([own[rows] for own, rows in zip(patches, ids, strict=True)])
    found = vit.run_blocks(vit.with_prefix(visible), ropes=visible_ropes(ropes, ids))
    for number, rows in enumerate(ids):
        tokens = vit.with_prefix(patches[number : number + 1, rows])
        own = None if ropes is None else [rope[..., rows, :] for rope in ropes]
        torch.testing.assert_close(found[number], vit.run_blocks(tokens, ropes=own)[0])


@pytest.mark.parametrize("make", [lambda: timm_vit("plain"), open_clip_vit], ids=["timm", "clip"])
def test_run__attention_can_be_replaced(make: Callable[[], nn.Module]) -> None:
    vit = vit_parts(make())
    tokens = vit.with_prefix(vit.embed(images()))
    block = vit.blocks[0]
    same = vit.run(block, tokens, attend=lambda attention, normed, rope: attention(normed))
    torch.testing.assert_close(same, vit.run(block, tokens))
    none = vit.run(block, tokens, attend=lambda attention, normed, rope: torch.zeros_like(normed))
    assert not torch.allclose(none, same)


@pytest.mark.parametrize("make", [lambda: timm_vit("plain"), open_clip_vit], ids=["timm", "clip"])
def test_run_blocks__recomputing_changes_nothing(make: Callable[[], Any]) -> None:
    trunk = make().train()
    vit = vit_parts(trunk)
    plain = vit.whole(images())
    assert not vit.recomputes
    trunk.set_grad_checkpointing(True)
    assert vit.recomputes
    torch.testing.assert_close(vit.whole(images()), plain)


def test_run_blocks__some_of_them() -> None:
    vit = vit_parts(timm_vit("rope_mixed"))
    tokens, ropes = vit.with_prefix(vit.embed(images())), vit.ropes()
    first = vit.run_blocks(tokens, ropes=ropes, stop=1)
    both = vit.run_blocks(first, ropes=ropes, start=1)
    torch.testing.assert_close(both, vit.run_blocks(tokens, ropes=ropes))


@pytest.mark.parametrize("kind", ["eva02", "dinov3", "rope_mixed"])
def test_ropes__of_another_grid(kind: str) -> None:
    """Positions that timm keeps for one grid are made for another one, and stay as they were."""
    fixed = vit_parts(timm_vit(kind))
    before = fixed.ropes()
    ropes = fixed.ropes((2, 3))
    expected = vit_parts(timm_vit(kind, dynamic_img_size=True)).ropes((2, 3))
    assert before is not None and ropes is not None and expected is not None
    assert ropes[0].shape[-2] == 6
    torch.testing.assert_close(ropes, expected)
    after = fixed.ropes()
    assert after is not None and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_vit_parts__of_something_else() -> None:
    trunk = timm.create_model("resnet10t", num_classes=0)
    assert not is_vit(trunk)
    with pytest.raises(ConfigError, match=r"A ResNet is not a plain ViT of timm or open_clip"):
        vit_parts(trunk)


def test_vit_parts__of_unknown_prefix_tokens() -> None:
    trunk = timm_vit("plain")
    trunk.num_prefix_tokens = 2
    with pytest.raises(ConfigError, match=r"has 2 prefix tokens, of which 1 are known here"):
        vit_parts(trunk)
