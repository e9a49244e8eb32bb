"""Blocks that compute only what is asked for."""

from __future__ import annotations

import pytest
import timm
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from maskclip_bench.modeling.blocks import (
    PackedCausalBlock,
    PartialBlock,
    allow_packing,
    allow_partial,
    heads_of,
)
from maskclip_bench.modeling.packing import PackedLayout


def test_allow_partial__leaves_other_blocks_alone() -> None:
    block = timm.create_model("vit_tiny_patch16_224", depth=1, qk_norm=False).blocks[0]
    assert allow_partial(block)
    assert allow_partial(block)
    assert not allow_partial(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("parts", [2, 3])
def test_heads_of__equals_the_plain_order_with_its_gradient(parts: int) -> None:
    torch.manual_seed(0)
    ours = torch.randn(2, 5, parts * 12, requires_grad=True)
    plain = ours.detach().clone().requires_grad_()
    of_plain = plain.view(2, 5, parts, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
    for found, expected in zip(heads_of(ours, parts, 3), of_plain, strict=True):
        assert torch.equal(found, expected)
    weights = torch.randn(parts, 2, 3, 5, 4)
    for projected, heads in ((ours, heads_of(ours, parts, 3)), (plain, of_plain)):
        sum((h * w).sum() for h, w in zip(heads, weights, strict=True)).backward()
        assert projected.grad is not None
    assert torch.equal(ours.grad, plain.grad)


def test_partial_block__some_outputs_are_those_of_all() -> None:
    torch.manual_seed(0)
    block = PartialBlock(12, 3, qkv_bias=True)
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(
        block(tokens, outputs=slice(0, 2)), block(tokens)[:, :2], rtol=1e-5, atol=1e-6
    )


def test_packed_causal_block__equals_open_clips(captions: Tensor) -> None:
    torch.manual_seed(0)
    block = ResidualAttentionBlock(8, 2)
    padded = torch.randn(3, 9, 8)
    above = torch.full((9, 9), float("-inf")).triu(1)
    expected = block(padded, attn_mask=above)
    assert allow_packing(block)
    assert isinstance(block, PackedCausalBlock)
    torch.testing.assert_close(block(padded, attn_mask=above), expected)
    layout = PackedLayout.of(captions)
    words = layout.pack(padded)
    found = block(words, layout=layout)
    torch.testing.assert_close(found, layout.pack(expected), rtol=1e-5, atol=1e-6)
    ends = block(words, layout=layout, only_ends=True)
    torch.testing.assert_close(ends, found[layout.ends], rtol=1e-5, atol=1e-6)
    assert not allow_packing(torch.nn.Linear(2, 2))
