"""The two towers, run by their parts: whole or visible patches only, captions without padding.

The weights are open_clip's and timm's own modules; only the order of the calls is ours, and equals
theirs (tests, 1e-5).

B images, N patches, V visible patches, D width of the trunk, T texts, L tokens of the longest, K
words of all texts, W width of the text tower, P width of the joint space.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskclip_bench.modeling.blocks import PackedLayout, PartialBlock
from maskclip_bench.modeling.masking import PatchMask

# --- images -------------------------------------------------------------------------------------


def is_vit(trunk: nn.Module) -> bool:
    """Whether a timm trunk is a plain ViT, whose patches can be dropped and replaced."""
    return isinstance(trunk, VisionTransformer)


def encode_image(model: CustomTextCLIP, images: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> L2-normalised embeddings [B, P], by any trunk."""
    return F.normalize(model.visual.head(pooled_image(model.visual.trunk, images)), dim=-1)


def pooled_image(trunk: nn.Module, images: Tensor) -> Tensor:
    """Images -> what the trunk's projection sees, [B, D]; the class token of a ViT."""
    if not is_vit(trunk):
        return trunk(images)
    return pooled_patches(trunk, embed_patches(trunk, images))


def image_tokens(trunk: nn.Module, images: Tensor, mask: PatchMask | None = None) -> Tensor:
    """Tokens after the final norm: [B, prefix + N, D], or prefix + V with the masked ones dropped.

    Args:
        trunk: A timm VisionTransformer.
        images: [B, 3, H, W], normalized.
        mask: Which patches to drop before the first block; they cost nothing.
    """
    return patches_to_tokens(trunk, embed_patches(trunk, images), mask)


def embed_patches(
    trunk: nn.Module, images: Tensor, *, replace: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Patch embeddings with their positions, [B, N, D]; passes over one image can share them.

    Args:
        trunk: A timm VisionTransformer.
        images: [B, 3, H, W].
        replace: A bool mask [B, N] and the token [D] to put where it is True (SimMIM, BEiT).
    """
    vit: Any = trunk
    patches = vit.patch_embed(images)  # [B, N, D]
    if replace is not None:
        where, token = replace
        patches = patches.where(~where.unsqueeze(-1), token.to(patches.dtype))
    position = vit.pos_embed  # [1, prefix + N, D], or [1, N, D]
    return patches + position[:, position.shape[1] - patches.shape[1] :]


def patches_to_tokens(
    trunk: nn.Module, patches: Tensor, mask: PatchMask | None = None, *, norm: bool = True
) -> Tensor:
    """Embedded patches [B, N, D] -> tokens, masked ones dropped, after the final norm or not."""
    vit: Any = trunk
    tokens = _with_prefix(vit, patches if mask is None else take_visible(patches, mask))
    for block in vit.blocks:
        tokens = _run(block, tokens, recompute=vit.grad_checkpointing and vit.training)
    return vit.norm(tokens) if norm else tokens


def pooled_patches(trunk: nn.Module, patches: Tensor) -> Tensor:
    """Embedded patches [B, N, D] -> the trunk's pooled output [B, D].

    Where only the class token is pooled, the last block computes only that.
    """
    vit: Any = trunk
    last = vit.blocks[-1]
    if vit.global_pool != "token" or not isinstance(last, PartialBlock):
        return vit.forward_head(patches_to_tokens(vit, patches))
    recompute = vit.grad_checkpointing and vit.training
    tokens = _with_prefix(vit, patches)
    for block in vit.blocks[:-1]:
        tokens = _run(block, tokens, recompute=recompute)
    class_token = _run(last, tokens, recompute=recompute, outputs=slice(0, 1))
    return vit.forward_head(vit.norm(class_token))


def patch_tokens(trunk: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens without the prefix (class token): [B, N, D]."""
    return tokens[:, trunk.num_prefix_tokens :]


def take_visible(patches: Tensor, mask: PatchMask) -> Tensor:
    """Patches [B, N, D] -> the visible ones [B, V, D]."""
    return take_tokens(patches, mask.visible_ids)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens [B, N, D] by ids [B, n] -> [B, n, D]."""
    batch, length, width = tokens.shape
    first = torch.arange(0, batch * length, length, device=ids.device).unsqueeze(1)
    return tokens.reshape(-1, width).index_select(0, (ids + first).flatten()).view(batch, -1, width)


def _with_prefix(vit: Any, patches: Tensor) -> Tensor:
    """Put class and register tokens before the patches, [B, prefix + n, D]."""
    prefix = [
        token for token in (vit.cls_token, getattr(vit, "reg_token", None)) if token is not None
    ]
    if prefix:
        num_prefix = vit.num_prefix_tokens
        tokens = torch.cat(prefix, dim=1)
        if vit.pos_embed.shape[1] > vit.patch_embed.num_patches:
            tokens = tokens + vit.pos_embed[:, :num_prefix]
        patches = torch.cat([tokens.to(patches.dtype).expand(len(patches), -1, -1), patches], dim=1)
    return vit.norm_pre(vit.pos_drop(patches))


def _run(block: nn.Module, tokens: Tensor, *, recompute: bool, **kwargs: Any) -> Tensor:
    if recompute:
        return checkpoint(block, tokens, use_reentrant=False, **kwargs)
    return block(tokens, **kwargs)


# --- texts --------------------------------------------------------------------------------------


def encode_text(
    model: CustomTextCLIP, tokens: Tensor, layout: PackedLayout | None = None
) -> Tensor:
    """Captions -> L2-normalised embeddings [T, P].

    Args:
        model: Its text tower is used.
        tokens: Int64 [T, L], L up to the context length.
        layout: That of the captions, if it is known.
    """
    layout = layout or PackedLayout.of(tokens)
    words = embed_words(model.text, layout.pack(tokens), layout)
    return project_ends(model, text_ends(model.text, words, layout))


def embed_words(text: Any, words: Tensor, layout: PackedLayout) -> Tensor:
    """Packed words, int64 [K] -> embeddings with their positions, [K, W]."""
    return text.token_embedding(words) + position_embedding(text, layout)


def position_embedding(text: Any, layout: PackedLayout) -> Tensor:
    """Positions of packed words, [K, W]."""
    return text.positional_embedding.index_select(0, layout.positions)


def text_ends(text: Any, embedded: Tensor, layout: PackedLayout) -> Tensor:
    """Packed embeddings [K, W] -> states of the end tokens after the final norm, [T, W]."""
    *blocks, last = _text_blocks(text)
    hidden = run_text_blocks(text, blocks, embedded, layout)
    ends = run_text_blocks(text, [last], hidden, layout, only_ends=True)
    return text.ln_final(ends)


def text_hidden(text: Any, embedded: Tensor, layout: PackedLayout) -> Tensor:
    """Packed embeddings [K, W] -> hidden states of all words after the final norm, [K, W].

    Attention is causal: what follows a caption's end never reaches it, so leaving it out is exact.
    """
    return text.ln_final(run_text_blocks(text, _text_blocks(text), embedded, layout))


def text_ends_and_hidden(
    text: Any, plain: Tensor, masked: Tensor, layout: PackedLayout
) -> tuple[Tensor, Tensor]:
    """Captions plain and masked in one pass: ends of the plain [T, W], all of the masked [K, W]."""
    *blocks, last = _text_blocks(text)
    both = run_text_blocks(text, blocks, torch.cat([plain, masked]), layout.twice())
    plain, masked = both.tensor_split(2)
    ends = run_text_blocks(text, [last], plain, layout, only_ends=True)
    hidden = run_text_blocks(text, [last], masked, layout)
    return text.ln_final(ends), text.ln_final(hidden)


def project_ends(model: CustomTextCLIP, ends: Tensor) -> Tensor:
    """States of the end tokens [T, W] -> L2-normalised embeddings [T, P]."""
    return F.normalize(ends @ model.text.text_projection, dim=-1)


def run_text_blocks(
    text: Any,
    blocks: list[nn.Module],
    hidden: Tensor,
    layout: PackedLayout,
    *,
    only_ends: bool = False,
) -> Tensor:
    """Run blocks of the text tower on packed words [K, W]."""
    recompute = text.transformer.grad_checkpointing and text.training
    for block in blocks:
        hidden = _run(block, hidden, recompute=recompute, layout=layout, only_ends=only_ends)
    return hidden


def _text_blocks(text: Any) -> list[nn.Module]:
    return list(text.transformer.resblocks)
