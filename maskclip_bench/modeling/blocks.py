"""Transformer blocks that compute what is asked for, and nothing else.

They are timm's and open_clip's own blocks with the same weights under the same names; only how
they run differs. Their results equal the originals' (tests, 1e-5). An existing block becomes one by
a change of its class: both classes have the same attributes, and a copy would separate the weights
from the library's model that holds them.

- A last block whose class token alone is read needs keys and values of all tokens, but queries,
  projection and feed-forward part of one token: about a sixth of its arithmetic.
- A caption's padding goes through no linear layer: its words stay packed (`modeling.packing`), and
  are laid out as [T, L, W] for the attention itself only.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maskclip_bench.modeling.attention import attend
from maskclip_bench.modeling.packing import PackedLayout


def heads_of(projected: Tensor, parts: int, heads: int) -> list[Tensor]:
    """Queries, keys and values beside each other, [B, N, parts * D] -> of each [B, H, N, D / H].

    Views, taken apart before the heads come first: so their gradients are put together where the
    gradient of `projected` is wanted, in one copy and not in two.
    """
    batch, length, _ = projected.shape
    return [
        part.transpose(1, 2) for part in projected.view(batch, length, parts, heads, -1).unbind(2)
    ]


class PartialBlock(Block):
    """timm's block, which can also return only some of its outputs.

    B images, N tokens, n outputs, D width, H heads.
    """

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        outputs: slice | None = None,
    ) -> Tensor:
        """[B, N, D] -> [B, N, D], or the tokens of `outputs` alone, [B, n, D]."""
        attention: Any = self.attn
        batch, _, width = x.shape
        heads = attention.num_heads
        normed = self.norm1(x)
        if outputs is None:
            query, key, value = heads_of(attention.qkv(normed), 3, heads)  # each [B, H, N, D / H]
        else:
            x = x[:, outputs]
            weight, bias = attention.qkv.weight, attention.qkv.bias
            query_bias, rest_bias = (None, None) if bias is None else (bias[:width], bias[width:])
            query = F.linear(normed[:, outputs], weight[:width], query_bias)  # [B, n, D]
            query = query.view(batch, -1, heads, width // heads).transpose(1, 2)
            key, value = heads_of(F.linear(normed, weight[width:], rest_bias), 2, heads)
        mixed = attend(
            attention.q_norm(query),
            attention.k_norm(key),
            value,
            mask=attn_mask,
            is_causal=is_causal,
            dropout=attention.attn_drop.p if self.training else 0.0,
        )
        mixed = mixed.transpose(1, 2).reshape(batch, -1, width)
        x = x + self.drop_path1(self.ls1(attention.proj_drop(attention.proj(mixed))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def allow_partial(block: nn.Module) -> bool:
    """Make a plain timm block a `PartialBlock`; False if it is of another kind."""
    if isinstance(block, PartialBlock):
        return True
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    attention: Any = block.attn
    plain = attention.num_heads * attention.head_dim == attention.qkv.in_features
    extras = (getattr(attention, "gate", None), getattr(attention, "norm", None))
    if not plain or any(not isinstance(extra, nn.Identity | None) for extra in extras):
        return False
    block.__class__ = PartialBlock
    return True


class TextLayout(Protocol):
    """Where the packed words of texts are; see `modeling.packing` and `modeling.shared_prefixes`.

    T texts, L tokens of the longest, K packed words.
    """

    @property
    def num_texts(self) -> int:
        """T."""

    @property
    def length(self) -> int:
        """L."""

    @property
    def ends(self) -> Tensor:
        """Int64 [T], the packed place of each text's end token."""

    @property
    def is_word(self) -> Tensor:
        """Bool [T, L], True from the start to the end token."""

    def pack(self, padded: Tensor) -> Tensor:
        """[T, L, ...] -> [K, ...]."""

    def pad(self, packed: Tensor) -> Tensor:
        """[K, W] -> [T, L, W]."""


def packed_block(
    block: Any, words: Tensor, layout: TextLayout, *, only_ends: bool = False
) -> Tensor:
    """Packed words through one of open_clip's text blocks, as causal as it is there.

    Args:
        block: A `ResidualAttentionBlock`.
        words: [K, W].
        layout: Theirs.
        only_ends: Whether to compute the end tokens' states alone.

    Returns:
        [K, W], or [T, W].
    """
    width, heads = words.shape[1], block.attn.num_heads
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    normed = block.ln_1(words)
    if only_ends:
        words = words.index_select(0, layout.ends)  # [T, W]
        query = F.linear(normed.index_select(0, layout.ends), weight[:width], bias[:width])
        rest = layout.pad(F.linear(normed, weight[width:], bias[width:]))
        key, value = heads_of(rest, 2, heads)  # each [T, H, L, W / H]
        query = query.view(layout.num_texts, heads, 1, -1)
        mask = layout.is_word[:, None, None, :]  # all of a caption's words precede its end
        mixed = attend(query, key, value, mask=mask)
        mixed = mixed.reshape(layout.num_texts, width)
    else:
        query, key, value = heads_of(layout.pad(F.linear(normed, weight, bias)), 3, heads)
        mixed = attend(query, key, value, is_causal=True)
        mixed = layout.pack(mixed.transpose(1, 2).flatten(2))  # [K, W]
    words = words + block.ls_1(block.attn.out_proj(mixed))
    result: Tensor = words + block.ls_2(block.mlp(block.ln_2(words)))
    return result


class PackedCausalBlock(ResidualAttentionBlock):
    """open_clip's text block, with fused attention and, on packed captions, without padding.

    Called as open_clip does, it is open_clip's. W width, H heads.
    """

    def forward(self, q_x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run packed if given a `layout`, else as open_clip's block.

        Args:
            q_x: [K, W] with a layout; else whatever open_clip passes.
            *args: open_clip's.
            **kwargs: open_clip's; or `layout`, and `only_ends=True` to get the end tokens' states
                alone, [T, W].
        """
        layout: PackedLayout | None = kwargs.pop("layout", None)
        if layout is None:
            return super().forward(q_x, *args, **kwargs)
        return packed_block(self, q_x, layout, only_ends=kwargs.pop("only_ends", False))


def allow_packing(block: nn.Module) -> bool:
    """Make an open_clip text block a `PackedCausalBlock`; False if it is of another kind."""
    if type(block) is ResidualAttentionBlock:
        block.__class__ = PackedCausalBlock
    return isinstance(block, PackedCausalBlock)
