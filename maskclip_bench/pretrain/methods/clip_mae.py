"""CLIP+MAE: contrastive loss, and the pixels of hidden patches from the visible ones.

The paper's T9 starts here (pixels as target). Its decoder, weight and normalization are unknown;
defaults are MAE's (arXiv 2111.06377) with the one-layer decoder and the weight of MaskCLIP.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.decoders import VisionDecoder
from maskclip_bench.modeling.masking import gather_tokens, random_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import image_tokens
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
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


class CLIPMAE(ContrastiveMethod):
    """A whole pass for the pairs, a second one over the visible quarter for the pixels."""

    Config = CLIPMAEConfig
    relative_cost = 1.6

    def __init__(self, config: CLIPMAEConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        trunk = self.model.visual.trunk
        self.mask_ratio = config.mask_ratio
        self.weight = config.reconstruction_weight
        self.patch_size: int = trunk.patch_embed.patch_size[0]
        self.decoder = VisionDecoder(
            encoder_dim=trunk.embed_dim,
            num_patches=trunk.patch_embed.num_patches,
            embed_dim=config.decoder_dim or trunk.embed_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads or trunk.blocks[0].attn.num_heads,
            output_dim=3 * self.patch_size**2,
        )

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Embeddings, and the reconstruction loss on hidden patches."""
        embeddings, _ = self.encode_pairs(batch)
        trunk = self.model.visual.trunk
        mask = random_mask(
            len(batch.images), trunk.patch_embed.num_patches, self.mask_ratio, batch.generator
        ).to(batch.images.device)
        tokens = image_tokens(trunk, batch.images, mask)  # [B, 1 + V, D]
        predicted = self.decoder(tokens, mask, num_prefix=trunk.num_prefix_tokens)  # [B, M, 3 p^2]
        target = gather_tokens(normalized_patches(batch.images, self.patch_size), mask.hidden_ids)
        loss = F.mse_loss(predicted.float(), target)
        return embeddings, {"reconstruction_loss": self.weight * loss}


def normalized_patches(images: Tensor, patch_size: int) -> Tensor:
    """Images [B, 3, H, W] -> patches [B, N, 3 p^2], each with mean 0 and variance 1 (MAE)."""
    patches = F.unfold(images.float(), patch_size, stride=patch_size).transpose(1, 2)
    mean = patches.mean(dim=-1, keepdim=True)
    return (patches - mean) / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
