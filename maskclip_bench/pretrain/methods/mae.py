"""MAE (arXiv 2111.06377): the pixels of hidden patches from the visible quarter; no captions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from maskclip_bench.data.batch import Batch, Draw
from maskclip_bench.modeling.masking import PatchMask, random_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import image_tokens
from maskclip_bench.pretrain.methods.base import Embeddings, ImageOnlyMethod, Terms, vit_of
from maskclip_bench.pretrain.methods.parts.reconstruction import (
    ReconstructionConfig,
    num_pixels,
    pixel_loss,
    pixel_targets,
    vision_decoder,
)


class MAEConfig(ReconstructionConfig):
    """Fields of MAE; defaults are its paper's for ViT-B/16."""

    decoder_depth: int = Field(default=8, ge=1)
    """Blocks of the decoder (MAE: 8)."""
    decoder_dim: int | None = Field(default=512, ge=1)
    """Width of the decoder (MAE: 512)."""
    decoder_num_heads: int | None = Field(default=16, ge=1)
    """Heads of the decoder (MAE: 16)."""


class MAE(ImageOnlyMethod):
    """One image pass over the visible patches."""

    Config = MAEConfig
    relative_cost = 0.6

    def __init__(self, config: MAEConfig, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        self.config = config
        vit = vit_of(self)
        self.decoder = vision_decoder(vit, config, output_dim=num_pixels(vit))

    def draw(self, draw: Draw) -> dict[str, Any]:
        """The patches to hide."""
        num_patches, ratio = vit_of(self).num_patches, self.config.mask_ratio
        return {"mask": random_mask(draw.num_images, num_patches, ratio, draw.generator)}

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """The reconstruction loss on hidden patches."""
        vit, images = vit_of(self), batch.images
        mask: PatchMask = self.drawn(batch)["mask"]
        visible = image_tokens(vit.trunk, images, mask)  # [B, P + V, D]
        predicted = self.decoder(visible, mask, num_prefix=vit.num_prefix_tokens)  # [B, M, 3 p^2]
        target = pixel_targets(images, mask, vit)
        loss = pixel_loss(predicted, target, normalize=self.config.normalize_pixels)
        return {}, {"reconstruction_loss": loss}
