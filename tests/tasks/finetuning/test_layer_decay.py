"""Parameter groups against those of MAE's, BEiT's and FT-CLIP's scripts."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer as OpenClipViT
from torch import nn

from maskclip_bench.tasks.finetuning.layer_decay import Layers, decayed_groups, layer_rates
from tests.tasks.finetuning.tiny import tiny_vit

TOKENS = ("cls_token", "pos_embed", "class_embedding", "positional_embedding")


def of_the_scripts(name: str, depth: int) -> int:
    """Layer by name, as MAE (timm's names) and FT-CLIP (OpenAI's names) write it down."""
    if name in TOKENS or name.startswith(("patch_embed", "conv1", "ln_pre", "norm_pre")):
        return 0
    for prefix, position in (("blocks.", 1), ("transformer.resblocks.", 2)):
        if name.startswith(prefix):
            return int(name.split(".")[position]) + 1
    return depth + 1


def check(model: nn.Module, depth: int, *, layer_decay: float = 0.65) -> None:
    layers = Layers(model)
    groups = decayed_groups(model.parameters(), layers, layer_decay=layer_decay, weight_decay=0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = set()
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            layer = of_the_scripts(name, depth)
            assert group["lr_scale"] == pytest.approx(layer_decay ** (depth + 1 - layer)), name
            exempt = parameter.ndim == 1 or name.endswith(".bias") or name in TOKENS
            assert group["weight_decay"] == (0.0 if exempt else 0.05), name
    assert seen == set(names.values())


def test_groups__timm_vit_as_in_mae() -> None:
    model = tiny_vit()
    model.head = nn.Linear(16, 3)
    check(model, 2)
    check(tiny_vit(pre_norm=True, fc_norm=True, global_pool="avg"), 2)


def test_groups__open_clip_vit_as_in_ft_clip() -> None:
    model = OpenClipViT(
        image_size=16, patch_size=8, width=16, layers=3, heads=2, mlp_ratio=2.0, output_dim=8
    )
    check(model, 3, layer_decay=0.6)


def test_groups__registers_decay_neither() -> None:
    model = tiny_vit(reg_tokens=2)
    layers = Layers(model)
    assert layers.of(model.reg_token) == 0
    assert not layers.decays(model.reg_token)


def test_groups__a_model_of_timm_that_is_no_vit() -> None:
    model = timm.create_model("resnet10t", num_classes=0)
    layers = Layers(model)
    assert layers.known
    first, last = model.conv1[0].weight, model.layer4[-1].conv2.weight
    assert layers.of(first) < layers.of(last) < layers.of(nn.Parameter(torch.zeros(1)))


def test_groups__unknown_layers_learn_at_one_rate(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with caplog.at_level(logging.WARNING):
        groups = decayed_groups(
            model.parameters(), Layers(model), layer_decay=0.5, weight_decay=0.1
        )
    assert "does not say which layers it has" in caplog.text
    assert layer_rates(groups) == {"1": 1.0}
    everything = decayed_groups(
        model.parameters(), Layers(model), layer_decay=1, weight_decay=0.1, decay_everything=True
    )
    assert [group["weight_decay"] for group in everything] == [0.1]
