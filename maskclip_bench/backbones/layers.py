"""Tokens after any block of a ViT, for timm's and open_clip's models."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.vit import is_vit, vit_parts


def tokens_at(trunk: nn.Module, images: Tensor, layer: int) -> tuple[Tensor | None, Tensor]:
    """Class token [B, D] (None without one) and patch tokens [B, N, D] after a block.

    The trunk's final norm is applied at every layer.

    Args:
        trunk: A ViT (`modeling.vit`).
        images: [B, 3, H, W], normalized, of the trunk's own size.
        layer: The block; 0 is the first, -1 the last.

    Raises:
        ConfigError: It is no ViT, or has fewer blocks.
    """
    if not is_vit(trunk):
        raise ConfigError(
            f"{type(trunk).__name__} is no ViT, so it has no tokens of a layer. Use kind pooled."
        )
    parts: Any = vit_parts(trunk)
    depth = len(parts.blocks)
    if not -depth <= layer < depth:
        raise ConfigError(
            f"There is no layer {layer}: {type(trunk).__name__} has {depth} blocks, 0 to "
            f"{depth - 1}, and -1 is the last."
        )
    index = layer % depth
    tokens = parts.with_prefix(parts.embed(images))
    tokens = parts.run_blocks(tokens, ropes=parts.ropes(), stop=index + 1)
    tokens = parts.norm(tokens)
    prefix = tokens.shape[1] - parts.num_patches
    return (tokens[:, 0] if prefix else None), tokens[:, prefix:]
