"""CLIP+MAE: contrastive loss, and the pixels of hidden patches from the visible ones.

The paper's T9 starts here (pixels as target). Its decoder, weight and normalization are unknown;
defaults are MAE's (arXiv 2111.06377) with the one-layer decoder and the weight of MaskCLIP.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field

from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.decoders import (
    VisionDecoder,
    decoder_targets,
    normalized_patches,
    pixel_patches,
)
from maskclip_bench.modeling.masking import random_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import (
    embed_patches,
    encode_text,
    patches_to_tokens,
    pooled_patches,
)
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
    packed_layout,
    vit_trunk,
)


class CLIPMAEConfig(ContrastiveConfig):
    """Fields of CLIP+MAE."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches hidden (paper, MAE: 0.75)."""
    reconstruction_weight: float = Field(default=0.05, ge=0)
    """Weight of the pixel loss; unknown for the paper's baseline, MaskCLIP's lambda."""
    decoder_depth: int = Field(default=1, ge=1)
    """Blocks of the decoder; MaskCLIP's 1 (MAE's own is 8)."""
    decoder_dim: int | None = None
    """Width of the decoder; None = the encoder's, as in RILS."""
    decoder_num_heads: int | None = None
    """Heads of the decoder; None = the encoder's."""
    normalize_pixels: bool = True
    """Predict patches of mean 0 and variance 1 (MAE: better than plain pixels)."""


class CLIPMAE(ContrastiveMethod):
    """A whole pass for the pairs, a second one over the visible quarter for the pixels."""

    Config = CLIPMAEConfig
    relative_cost = 1.4

    def __init__(self, config: CLIPMAEConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.config = config
        trunk = vit_trunk(self)
        self.patch_size: int = trunk.patch_embed.patch_size[0]
        self.decoder = VisionDecoder(
            encoder_dim=trunk.embed_dim,
            grid_size=trunk.patch_embed.grid_size,
            embed_dim=config.decoder_dim or trunk.embed_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads or trunk.blocks[0].attn.num_heads,
            output_dim=3 * self.patch_size**2,
        )

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Embeddings, and the reconstruction loss on hidden patches."""
        trunk = vit_trunk(self)
        patches = embed_patches(trunk, batch.images)  # [B, N, D], shared by both passes
        embeddings = {
            "image_features": F.normalize(
                self.model.visual.head(pooled_patches(trunk, patches)), dim=-1
            ),
            "text_features": encode_text(self.model, batch.tokens, packed_layout(batch)),
        }
        mask = random_mask(
            len(patches), patches.shape[1], self.config.mask_ratio, batch.generator
        ).to(patches.device)
        visible = patches_to_tokens(trunk, patches, mask)  # [B, 1 + V, D]
        predicted = self.decoder(visible, mask, num_prefix=trunk.num_prefix_tokens)  # [B, M, 3 p^2]
        target = decoder_targets(pixel_patches(batch.images, self.patch_size), mask)
        if self.config.normalize_pixels:
            target = normalized_patches(target)
        loss = F.mse_loss(predicted.float(), target)
        return embeddings, {"reconstruction_loss": self.config.reconstruction_weight * loss}
