"""SimMIM (arXiv 2111.09886): hidden patches become a mask token, one layer predicts the pixels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from maskclip_bench.config import Declaration
from maskclip_bench.data.batch import Batch, Draw
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.masking import PatchMask, coarse_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import (
    embed_patches,
    patch_tokens,
    patches_to_tokens,
    take_tokens,
)
from maskclip_bench.pretrain.methods.base import Embeddings, ImageOnlyMethod, Terms, vit_of
from maskclip_bench.pretrain.methods.parts.reconstruction import num_pixels, pixel_targets


class SimMIMConfig(Declaration):
    """Fields of SimMIM; defaults are its paper's for ViT-B/16."""

    mask_ratio: float = Field(default=0.6, gt=0, lt=1)
    """Share of the image hidden (SimMIM: 0.6)."""
    mask_patch_size: int = Field(default=32, ge=1)
    """Side in pixels of the squares that are hidden (SimMIM: 32)."""


class SimMIM(ImageOnlyMethod):
    """One image pass over all patches, the hidden ones replaced."""

    Config = SimMIMConfig
    relative_cost = 1.1

    def __init__(self, config: SimMIMConfig, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        self.config = config
        vit = vit_of(self)
        patch_size = vit.patch_size[0]
        self.cell, rest = divmod(config.mask_patch_size, patch_size)
        if not self.cell or rest or any(side % self.cell for side in vit.grid_size):
            raise ConfigError(
                f"mask_patch_size {config.mask_patch_size} must be a multiple of the patch size "
                f"{patch_size}, and divide the image of {model_config.image_size} px. "
                f"{patch_size} always does."
            )
        self.mask_token = nn.Parameter(torch.zeros(vit.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(vit.embed_dim, num_pixels(vit))

    def draw(self, draw: Draw) -> dict[str, Any]:
        """The cells to hide."""
        grid, ratio = vit_of(self).grid_size, self.config.mask_ratio
        return {"mask": coarse_mask(draw.num_images, grid, ratio, self.cell, draw.generator)}

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Mean absolute error of the pixels of hidden patches."""
        vit, images = vit_of(self), batch.images
        mask: PatchMask = self.drawn(batch)["mask"]
        patches = embed_patches(vit.trunk, images, replace=(mask.hidden, self.mask_token))
        tokens = patch_tokens(vit.trunk, patches_to_tokens(vit.trunk, patches))  # [B, N, D]
        predicted = self.head(take_tokens(tokens, mask.hidden_ids))  # [B, M, 3 p^2]
        target = pixel_targets(images, mask, vit)
        return {}, {"reconstruction_loss": F.l1_loss(predicted.float(), target)}
