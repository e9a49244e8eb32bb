"""MAE (arXiv 2111.06377): the pixels of hidden patches from the visible quarter; no captions."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field

from maskclip_bench.config import Declaration
from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.decoders import (
    VisionDecoder,
    decoder_targets,
    normalized_patches,
    pixel_patches,
)
from maskclip_bench.modeling.masking import random_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import image_tokens
from maskclip_bench.pretrain.methods.base import Embeddings, ImageOnlyMethod, Terms, vit_trunk


class MAEConfig(Declaration):
    """Fields of MAE; defaults are its paper's for ViT-B/16."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches hidden (MAE: 0.75)."""
    decoder_depth: int = Field(default=8, ge=1)
    """Blocks of the decoder (MAE: 8)."""
    decoder_dim: int = Field(default=512, ge=1)
    """Width of the decoder (MAE: 512)."""
    decoder_num_heads: int = Field(default=16, ge=1)
    """Heads of the decoder (MAE: 16)."""
    normalize_pixels: bool = True
    """Predict patches of mean 0 and variance 1 (MAE: better than plain pixels)."""


class MAE(ImageOnlyMethod):
    """One image pass over the visible patches."""

    Config = MAEConfig
    relative_cost = 0.6

    def __init__(self, config: MAEConfig, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        self.config = config
        trunk = vit_trunk(self)
        self.patch_size: int = trunk.patch_embed.patch_size[0]
        self.decoder = VisionDecoder(
            encoder_dim=trunk.embed_dim,
            grid_size=trunk.patch_embed.grid_size,
            embed_dim=config.decoder_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads,
            output_dim=3 * self.patch_size**2,
        )

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """The reconstruction loss on hidden patches."""
        trunk = vit_trunk(self)
        mask = random_mask(
            len(batch.images),
            trunk.patch_embed.num_patches,
            self.config.mask_ratio,
            batch.generator,
        ).to(batch.images.device)
        visible = image_tokens(trunk, batch.images, mask)  # [B, 1 + V, D]
        predicted = self.decoder(visible, mask, num_prefix=trunk.num_prefix_tokens)  # [B, M, 3 p^2]
        target = decoder_targets(pixel_patches(batch.images, self.patch_size), mask)
        if self.config.normalize_pixels:
            target = normalized_patches(target)
        return {}, {"reconstruction_loss": F.mse_loss(predicted.float(), target)}
