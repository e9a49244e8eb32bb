"""The two towers, run by their parts: whole or visible patches only, captions at their own length.

B images or texts, N patches, V visible patches, L tokens of the longest caption, D width of the
trunk, W width of the text tower, P width of the joint space. The weights are open_clip's and timm's
own modules; only the order of the calls is ours, and equals theirs (tests, 1e-5).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskclip_bench.modeling.masking import PatchMask, gather_tokens


def image_tokens(trunk: nn.Module, images: Tensor, mask: PatchMask | None = None) -> Tensor:
    """Tokens after the final norm: [B, 1 + N, D], or [B, 1 + V, D] with the masked ones dropped.

    Args:
        trunk: A timm VisionTransformer (prefix tokens first).
        images: [B, 3, H, W], normalized.
        mask: Which patches to drop before the first block; they cost nothing.
    """
    vit: Any = trunk
    patches = vit.patch_embed(images)  # [B, N, D]
    num_prefix = vit.num_prefix_tokens
    position = vit.pos_embed  # [1, prefix + N, D], or [1, N, D]
    with_prefix = position.shape[1] == patches.shape[1] + num_prefix
    patches = patches + (position[:, num_prefix:] if with_prefix else position)
    if mask is not None:
        patches = gather_tokens(patches, mask.visible_ids)  # [B, V, D]
    prefix = [
        token for token in (vit.cls_token, getattr(vit, "reg_token", None)) if token is not None
    ]
    if prefix:
        tokens = torch.cat(prefix, dim=1)
        if with_prefix:
            tokens = tokens + position[:, :num_prefix]
        patches = torch.cat([tokens.expand(len(patches), -1, -1), patches], dim=1)
    hidden = vit.norm_pre(vit.pos_drop(patches))
    if vit.grad_checkpointing and vit.training:
        hidden = checkpoint_seq(vit.blocks, hidden)
    else:
        hidden = vit.blocks(hidden)
    return vit.norm(hidden)


def patch_tokens(trunk: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens without the prefix (class token): [B, N, D]."""
    return tokens[:, trunk.num_prefix_tokens :]


def project_image(model: CustomTextCLIP, tokens: Tensor) -> Tensor:
    """Tokens of the whole image -> L2-normalised embedding [B, P]."""
    pooled = model.visual.trunk.forward_head(tokens)
    return F.normalize(model.visual.head(pooled), dim=-1)


def text_hidden(text: nn.Module, tokens: Tensor, embedded: Tensor | None = None) -> Tensor:
    """Hidden states after the final norm, [B, L, W], of captions trimmed to L tokens.

    Exact with causal attention: what comes after a caption's end never reaches it. open_clip's own
    forward takes only captions padded to the whole context.

    Args:
        text: open_clip's `TextTransformer`, causal.
        tokens: Int64 [B, L].
        embedded: [B, L, W], to be used instead of the embeddings of `tokens` (masked captions).
    """
    tower: Any = text
    hidden = tower.token_embedding(tokens) if embedded is None else embedded
    hidden = hidden + tower.positional_embedding[: tokens.shape[1]]
    recompute = tower.transformer.grad_checkpointing and text.training
    for block in tower.transformer.resblocks:
        if recompute:
            hidden = checkpoint(_causal_block, block, hidden, use_reentrant=False)
        else:
            hidden = _causal_block(block, hidden)
    return tower.ln_final(hidden)


def project_text(model: CustomTextCLIP, tokens: Tensor, hidden: Tensor) -> Tensor:
    """Hidden states -> L2-normalised embedding [B, P], taken at the end token (the largest id)."""
    end = tokens.argmax(dim=-1)
    pooled = hidden[torch.arange(len(hidden), device=hidden.device), end]
    return F.normalize(pooled @ model.text.text_projection, dim=-1)


def _causal_block(block: Any, hidden: Tensor) -> Tensor:
    """One of open_clip's residual attention blocks, with fused causal attention."""
    attention = block.attn
    batch, length, width = hidden.shape
    qkv = F.linear(block.ln_1(hidden), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = qkv.view(batch, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    mixed = attention.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
    hidden = hidden + block.ls_1(mixed)
    return hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
