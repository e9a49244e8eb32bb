"""The two towers: whole images or their visible patches, captions without padding -> embeddings.

The weights are open_clip's and timm's own modules; only which parts run differs, and the results
equal theirs (tests, 1e-5).

B images, N patches, V visible patches, P prefix tokens, D width of the trunk, T texts, L tokens of
the longest, W width of the text tower, J width of the joint space.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn

from maskclip_bench.modeling.blocks import PartialBlock
from maskclip_bench.modeling.masking import PatchMask
from maskclip_bench.modeling.packing import PackedText
from maskclip_bench.modeling.vit import is_vit, visible_ropes, vit_parts

# --- images -------------------------------------------------------------------------------------


def encode_image(model: CustomTextCLIP, images: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> L2-normalised embeddings [B, J], by any trunk."""
    return project_image(model, pooled_image(model.visual.trunk, images))


def project_image(model: CustomTextCLIP, pooled: Tensor) -> Tensor:
    """Pooled images [B, D] -> L2-normalised embeddings [B, J]."""
    return F.normalize(model.visual.head(pooled), dim=-1)


def pooled_image(trunk: nn.Module, images: Tensor) -> Tensor:
    """Images -> what the trunk's projection sees, [B, D]; the class token of a ViT."""
    if not is_vit(trunk):
        return trunk(images)
    return pooled_patches(trunk, embed_patches(trunk, images))


def image_tokens(trunk: nn.Module, images: Tensor, mask: PatchMask | None = None) -> Tensor:
    """Tokens after the final norm: [B, P + N, D], or P + V with the masked patches dropped.

    Args:
        trunk: A ViT (`modeling.vit`).
        images: [B, 3, H, W], normalized.
        mask: Which patches to drop before the first block; they cost nothing.
    """
    return patches_to_tokens(trunk, embed_patches(trunk, images), mask)


def embed_patches(
    trunk: nn.Module, images: Tensor, *, replace: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Patch embeddings with their positions, [B, N, D]; passes over one image can share them.

    Args:
        trunk: A ViT.
        images: [B, 3, H, W].
        replace: A bool mask [B, N] and the token [D] to put where it is True (SimMIM, BEiT).
    """
    vit = vit_parts(trunk)
    patches = vit.patches(images)
    if replace is not None:
        where, token = replace
        patches = patches.where(~where.unsqueeze(-1), token.to(patches.dtype))
    return vit.with_positions(patches)


def patches_to_tokens(
    trunk: nn.Module, patches: Tensor, mask: PatchMask | None = None, *, norm: bool = True
) -> Tensor:
    """Embedded patches [B, N, D] -> tokens, masked ones dropped, after the final norm or not."""
    vit = vit_parts(trunk)
    ropes = vit.ropes()
    if mask is not None:
        patches = take_tokens(patches, mask.visible_ids)
        ropes = visible_ropes(ropes, mask.visible_ids)
    tokens = vit.run_blocks(vit.with_prefix(patches), ropes=ropes)
    return vit.norm(tokens) if norm else tokens


def pooled_patches(trunk: nn.Module, patches: Tensor) -> Tensor:
    """Embedded patches [B, N, D] -> the trunk's pooled output [B, D].

    Where only the class token is pooled, the last block computes only that.
    """
    vit = vit_parts(trunk)
    pooler: Any = trunk
    if pooler.global_pool != "token" or not isinstance(vit.blocks[-1], PartialBlock):
        return pooler.forward_head(patches_to_tokens(trunk, patches))
    tokens = vit.run_blocks(vit.with_prefix(patches), stop=-1)
    class_token = vit.run_blocks(tokens, start=-1, outputs=slice(0, 1))
    return pooler.forward_head(vit.norm(class_token))


def patch_tokens(trunk: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens without the prefix (class token): [B, N, D]."""
    return tokens[:, vit_parts(trunk).num_prefix_tokens :]


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens [B, N, D] by ids [B, n] -> [B, n, D]."""
    batch, length, width = tokens.shape
    first = torch.arange(0, batch * length, length, device=ids.device).unsqueeze(1)
    return tokens.reshape(-1, width).index_select(0, (ids + first).flatten()).view(batch, -1, width)


# --- texts --------------------------------------------------------------------------------------


def encode_text(model: CustomTextCLIP, text: PackedText | Tensor) -> Tensor:
    """Captions, packed or as tokens int64 [T, L] -> L2-normalised embeddings [T, J]."""
    if isinstance(text, Tensor):
        text = PackedText(model.text, text)
    return project_text(model, text.at_end())


def project_text(model: CustomTextCLIP, eot_states: Tensor) -> Tensor:
    """States of the end tokens [T, W] -> L2-normalised embeddings [T, J]."""
    return F.normalize(eot_states @ model.text.text_projection, dim=-1)
