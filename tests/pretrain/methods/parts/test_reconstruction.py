"""The decoder's sizes, and the loss of pixels."""

from __future__ import annotations

import timm
import torch

from maskclip_bench.modeling import DEMO_VIT
from maskclip_bench.modeling.masking import random_mask
from maskclip_bench.modeling.vit import vit_parts
from maskclip_bench.pretrain.methods.parts.reconstruction import (
    VisionDecoderConfig,
    feature_loss,
    num_pixels,
    pixel_loss,
    pixel_targets,
    vision_decoder,
)

VIT = vit_parts(timm.create_model(DEMO_VIT, num_classes=0))


def test_vision_decoder__takes_the_encoders_sizes_by_default() -> None:
    decoder = vision_decoder(VIT, VisionDecoderConfig(), output_dim=7)
    assert decoder.embed.weight.shape == (96, 96)
    assert decoder.blocks[0].attn.num_heads == 3
    assert decoder.head.out_features == 7
    config = VisionDecoderConfig(decoder_depth=3, decoder_dim=24, decoder_num_heads=2)
    decoder = vision_decoder(VIT, config, output_dim=7, fixed_positions=False)
    assert (len(decoder.blocks), decoder.head.in_features) == (3, 24)
    assert decoder.blocks[0].attn.num_heads == 2
    assert "pos_embed" in dict(decoder.named_parameters())


def test_pixel_targets__are_the_pixels_of_hidden_patches() -> None:
    assert num_pixels(VIT) == 192
    images = torch.randn(2, 3, 48, 48)
    mask = random_mask(2, 36, 0.75, torch.Generator().manual_seed(0))
    targets = pixel_targets(images, mask, VIT)
    assert targets.shape == (2, 27, 192)
    row, column = divmod(int(mask.hidden_ids[1, 5]), 6)
    patch = images[1, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    assert torch.equal(targets[1, 5], patch.flatten())
    assert pixel_targets(images, mask, VIT, on_all=True).shape == (2, 36, 192)


def test_pixel_loss() -> None:
    target = 3 * torch.randn(2, 4, 12) + 5
    assert pixel_loss(target, target, normalize=False) == 0
    mean, std = target.mean(-1, keepdim=True), target.std(-1, keepdim=True)
    assert pixel_loss((target - mean) / std, target) < 1e-6


def test_feature_loss__ignores_scale_and_shift() -> None:
    target = torch.randn(2, 4, 12)
    assert feature_loss(3 * target + 5, target) < 1e-6
    assert feature_loss(-target, target) > 1
