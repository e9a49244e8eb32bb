"""CLIP+MAE: contrastive loss, and the pixels of hidden patches from the visible ones.

The paper's T9 starts here (pixels as target). Its decoder, weight and normalization are unknown;
defaults are MAE's (arXiv 2111.06377) with the one-layer decoder and the weight of MaskCLIP.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from maskclip_bench.data.batch import Batch, Draw
from maskclip_bench.modeling.masking import PatchMask, random_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import (
    embed_patches,
    encode_text,
    patches_to_tokens,
    pooled_patches,
    project_image,
)
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
    packed_text,
    vit_of,
)
from maskclip_bench.pretrain.methods.parts.reconstruction import (
    ReconstructionConfig,
    num_pixels,
    pixel_loss,
    pixel_targets,
    vision_decoder,
)


class CLIPMAEConfig(ContrastiveConfig, ReconstructionConfig):
    """Fields of CLIP+MAE."""

    contrastive_weight: float = Field(default=2.0, gt=0)
    """Of the mean of L_I and L_T; 2 is their sum, as in MaskCLIP's Eq. 8, so that the weights of
    the two methods' other terms are on one scale. 1 is CLIP's and SLIP's code."""
    reconstruction_weight: float = Field(default=0.05, ge=0)
    """Weight of the pixel loss; unknown for the paper's baseline, MaskCLIP's lambda."""


class CLIPMAE(ContrastiveMethod):
    """A whole pass for the pairs, a second one over the visible quarter for the pixels."""

    Config = CLIPMAEConfig
    relative_cost = 1.4

    def __init__(self, config: CLIPMAEConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.config = config
        vit = vit_of(self)
        self.decoder = vision_decoder(vit, config, output_dim=num_pixels(vit))

    def draw(self, draw: Draw) -> dict[str, Any]:
        """The patches to hide."""
        num_patches, ratio = vit_of(self).num_patches, self.config.mask_ratio
        mask = random_mask(draw.num_images, num_patches, ratio, draw.generator)
        return {**super().draw(draw), "mask": mask}

    def embed(self, batch: Batch) -> Embeddings:
        """Embeddings of the pair; the pass over the visible patches takes no part in them."""
        return self._pair(batch, embed_patches(vit_of(self).trunk, batch.images))

    def _pair(self, batch: Batch, patches: Tensor) -> Embeddings:
        """Embedded patches [B, N, D] and captions -> embeddings of the pair, each [B, P]."""
        pooled = pooled_patches(vit_of(self).trunk, patches)
        return {
            "image_features": project_image(self.model, pooled),
            "text_features": encode_text(self.model, packed_text(self, batch)),
        }

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Embeddings, and the reconstruction loss on hidden patches."""
        vit, config = vit_of(self), self.config
        patches = embed_patches(vit.trunk, batch.images)  # [B, N, D], shared by both passes
        embeddings = self._pair(batch, patches)
        mask: PatchMask = self.drawn(batch)["mask"]
        visible = patches_to_tokens(vit.trunk, patches, mask)  # [B, P + V, D]
        predicted = self.decoder(visible, mask, num_prefix=vit.num_prefix_tokens)  # [B, M, 3 p^2]
        target = pixel_targets(batch.images, mask, vit)
        loss = pixel_loss(predicted, target, normalize=config.normalize_pixels)
        return embeddings, {"reconstruction_loss": config.reconstruction_weight * loss}

    def contrast(self, embeddings: Embeddings) -> Terms:
        """CLIP's loss, weighted."""
        loss = super().contrast(embeddings)["contrastive_loss"]
        return {"contrastive_loss": self.config.contrastive_weight * loss}
