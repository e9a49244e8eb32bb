from __future__ import annotations

import json
import math
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor

from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling import (
    DEMO_VIT,
    ModelConfig,
    VisionConfig,
    build_model,
    open_clip_config,
)
from maskclip_bench.modeling.blocks import PackedCausalBlock, PartialBlock


def changed(config: ModelConfig, **vision: object) -> ModelConfig:
    return config.model_copy(update={"vision": VisionConfig(**vision)})


def test_build_model__is_an_open_clip_model(model: CustomTextCLIP) -> None:
    assert isinstance(model, CustomTextCLIP)
    assert model.visual.trunk.global_pool == "token"
    assert model.visual.head.proj.weight.shape == (24, 96)
    assert model.visual.head.proj.bias is None
    assert float(model.logit_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    assert isinstance(model.visual.trunk.blocks[-1], PartialBlock)
    assert all(isinstance(b, PackedCausalBlock) for b in model.text.transformer.resblocks)


def test_demo_vit__is_in_timm() -> None:
    trunk = timm.create_model(DEMO_VIT, num_classes=0)
    assert trunk.embed_dim == 96
    assert len(trunk.blocks) == 4
    assert trunk.patch_embed.num_patches == 36


def test_demo_model__has_less_than_a_million_parameters(config: ModelConfig) -> None:
    text = config.text.model_copy(update={"vocab_size": 1504, "width": 96, "context_length": 32})
    model = build_model(config.model_copy(update={"text": text, "proj_dim": 96}))
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 0.9e6


def test_build_model__vit_base_has_slip_sizes() -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig())
    vit = 85_798_656  # timm's vit_base_patch16_224 without classifier
    assert sum(p.numel() for p in model.visual.parameters()) == vit + 768 * 512
    width, blocks = 512, 12
    block = 12 * width**2 + 13 * width
    text = 49408 * width + 77 * width + blocks * block + 2 * width + width * 512
    assert sum(p.numel() for p in model.text.parameters()) == text


def test_build_model__drop_path_reaches_the_trunk(config: ModelConfig) -> None:
    model = build_model(changed(config, timm_model=DEMO_VIT, drop_path_rate=0.3))
    assert model.visual.trunk.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize(("init", "scale"), [("slip", 1.0), ("open_clip", 3**-0.5)])
def test_build_model__projection_init(config: ModelConfig, init: str, scale: float) -> None:
    torch.manual_seed(0)
    values = config.model_copy(update={"proj_dim": 400})
    model = build_model(changed(values, timm_model=DEMO_VIT, projection_init=init))
    found = float(model.visual.head.proj.weight.detach().std())
    assert found == pytest.approx(scale * 96**-0.5, rel=0.02)


def test_build_model__unknown_trunk(config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"timm has no model 'vit_bas_patch16_224'. Did you mean"):
        build_model(changed(config, timm_model="vit_bas_patch16_224"))


def test_build_model__image_of_another_size(config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"takes images of 48 px, not 64. Set model.image_size"):
        build_model(config.model_copy(update={"image_size": 64}))


def test_build_model__convolutions_take_any_size(config: ModelConfig) -> None:
    model = build_model(changed(config, timm_model="resnet10t"))
    assert model.eval().encode_image(torch.randn(1, 3, 48, 48)).shape == (1, 24)


def test_open_clip_config__round_trip(
    model: CustomTextCLIP, config: ModelConfig, images: Tensor, tmp_path: Path
) -> None:
    content = open_clip_config(config, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    model.eval(), loaded.eval()
    torch.testing.assert_close(loaded.encode_image(images), model.encode_image(images))
    tokens = torch.randint(1, 50, (2, 16))
    torch.testing.assert_close(loaded.encode_text(tokens), model.encode_text(tokens))
    assert preprocess.transforms[-1].mean == [0.1, 0.2, 0.3]
    assert preprocess.transforms[0].size == 48
