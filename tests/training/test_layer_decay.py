from __future__ import annotations

import pytest
import torch
from torch import nn

from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling import DEMO_VIT, ModelConfig, TextConfig, VisionConfig, build_model
from maskclip_bench.training.layer_decay import layer_scales

MODEL = ModelConfig(
    proj_dim=24,
    image_size=48,
    vision=VisionConfig(timm_model=DEMO_VIT),
    text=TextConfig(context_length=16, vocab_size=60, width=32, num_heads=2, depth=2),
)


def test_layer_scales__by_hand() -> None:
    """A trunk of 4 blocks and a text tower of 2; every parameter of both has a factor."""
    with torch.device("meta"):
        model = build_model(MODEL)
    scales = layer_scales(model, 0.5)
    assert scales["visual.trunk.pos_embed"] == scales["visual.trunk.cls_token"] == 0.5**5
    assert scales["visual.trunk.patch_embed.proj.weight"] == 0.5**5
    assert scales["visual.trunk.blocks.0.attn.qkv.weight"] == 0.5**4
    assert scales["visual.trunk.blocks.3.mlp.fc2.bias"] == 0.5
    assert scales["visual.trunk.norm.weight"] == 0.5
    assert scales["text.token_embedding.weight"] == scales["text.positional_embedding"] == 0.5**3
    assert scales["text.transformer.resblocks.0.attn.in_proj_weight"] == 0.5**2
    assert scales["text.transformer.resblocks.1.ln_2.weight"] == 0.5
    assert scales["text.ln_final.weight"] == 0.5
    assert scales["text.text_projection"] == 1
    towers = {name for name, _ in model.named_parameters() if ".trunk." in name or "text." in name}
    assert scales.keys() == towers


def test_layer_scales__trunk_without_layers() -> None:
    model = build_model(MODEL)
    model.visual.trunk = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="timm does not know the layers of a Linear"):
        layer_scales(model, 0.5)
