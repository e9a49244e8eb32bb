"""Predict what is hidden from what is visible: a small decoder, and pixels as its targets.

B images, N patches, M hidden, p side of a patch in pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from maskclip_bench.config import Declaration
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.decoders import (
    VisionDecoder,
    decoder_targets,
    normalized_patches,
    pixel_patches,
)
from maskclip_bench.modeling.masking import PatchMask
from maskclip_bench.modeling.vit import ViT


class VisionDecoderConfig(Declaration):
    """Fields of every method with a decoder after the encoder of visible patches."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches hidden (MaskCLIP, MAE: 0.75)."""
    decoder_depth: int = Field(default=1, ge=1)
    """Blocks of the vision decoder (MaskCLIP: 1; MAE's own is 8)."""
    decoder_dim: int | None = Field(default=None, ge=1)
    """Its width; unknown in MaskCLIP, None = the encoder's, as in RILS and DetailCLIP."""
    decoder_num_heads: int | None = Field(default=None, ge=1)
    """Its heads; unknown in MaskCLIP, None = the encoder's, as in RILS."""


class ReconstructionConfig(VisionDecoderConfig):
    """Fields of every method that predicts pixels with such a decoder."""

    normalize_pixels: bool = True
    """Predict patches of mean 0 and variance 1 (MAE: better than plain pixels)."""


def vision_decoder(
    vit: ViT, config: VisionDecoderConfig, *, output_dim: int, fixed_positions: bool = True
) -> VisionDecoder:
    """The decoder after a ViT.

    Args:
        vit: The encoder.
        config: Depth, width and heads.
        output_dim: Width of what is predicted for a patch.
        fixed_positions: Sine and cosine positions instead of learned ones.

    Raises:
        ConfigError: Heads do not divide the width.
    """
    width, num_heads = config.decoder_dim or vit.embed_dim, config.decoder_num_heads
    num_heads = num_heads or vit.num_heads
    if width % num_heads:
        raise ConfigError(
            f"The vision decoder is {width} wide (method.decoder_dim; by default the trunk's "
            f"{vit.embed_dim}), which is not a multiple of its {num_heads} heads "
            f"(method.decoder_num_heads; by default the trunk's {vit.num_heads})."
        )
    return VisionDecoder(
        encoder_dim=vit.embed_dim,
        grid_size=vit.grid_size,
        embed_dim=width,
        depth=config.decoder_depth,
        num_heads=num_heads,
        output_dim=output_dim,
        fixed_positions=fixed_positions,
    )


def num_pixels(vit: ViT) -> int:
    """Numbers in the pixels of a patch, 3 p^2."""
    return 3 * vit.patch_size[0] ** 2


def pixel_targets(images: Tensor, mask: PatchMask, vit: ViT, *, on_all: bool = False) -> Tensor:
    """Pixels of the hidden patches in the decoder's order, [B, M, 3 p^2] (`on_all`: of all)."""
    return decoder_targets(pixel_patches(images, vit.patch_size[0]), mask, predict_all=on_all)


def pixel_loss(predicted: Tensor, target: Tensor, *, normalize: bool = True) -> Tensor:
    """Mean squared error of pixels (MAE), both [B, M, 3 p^2].

    Args:
        predicted: By the decoder.
        target: As `pixel_targets` gives them.
        normalize: Whether each patch of the target gets mean 0 and variance 1.
    """
    return F.mse_loss(predicted.float(), normalized_patches(target) if normalize else target)


def feature_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of features [B, M, D], both layer-normed without parameters (BootMAE)."""
    width = target.shape[-1:]
    return F.mse_loss(F.layer_norm(predicted.float(), width), F.layer_norm(target.float(), width))
