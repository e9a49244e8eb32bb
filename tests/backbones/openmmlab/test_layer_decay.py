from __future__ import annotations

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn

from maskclip_bench.backbones.openmmlab.layer_decay import BackboneLayerDecay
from maskclip_bench.backbones.openmmlab.vit import MaskCLIPViT


class Segmentor(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(12, 3)


@pytest.fixture
def model() -> Segmentor:
    """A 12-block ViT under a head."""
    tiny = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "num_heads": 2, "num_classes": 0}
    return Segmentor(MaskCLIPViT(timm="vit_tiny_patch16_224", model_args=tiny, out_indices=(5, 11)))


def constructor(**paramwise: object) -> BackboneLayerDecay:
    return OPTIM_WRAPPER_CONSTRUCTORS.build(
        {
            "type": "BackboneLayerDecay",
            "optim_wrapper_cfg": {
                "type": "OptimWrapper",
                "optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.05},
            },
            "paramwise_cfg": paramwise,
        }
    )


def test_layer_decay__layers_and_rates_of_a_12_block_vit(model: Segmentor) -> None:
    groups = constructor(decay_rate=0.5).groups(model)
    found = {group["group_name"]: group for group in groups}
    rates = {name: group["lr"] for name, group in found.items()}
    expected = {"layer_0_no_decay": 2.0**-13, "layer_0_decay": 2.0**-13}
    for block in range(12):
        for kind in ("decay", "no_decay"):
            expected[f"layer_{block + 1}_{kind}"] = 2.0 ** -(12 - block)
    expected |= {"layer_13_decay": 1.0, "layer_13_no_decay": 1.0}
    assert rates == expected
    assert all(
        group["weight_decay"] == (0.0 if "no_decay" in name else 0.05)
        for name, group in found.items()
    )
    tower = model.backbone.tower
    holds = {
        "layer_0_no_decay": [
            tower.cls_token,
            tower.pos_embed,
            tower.patch_embed.proj.bias,
        ],
        "layer_0_decay": [tower.patch_embed.proj.weight],
        "layer_13_decay": [model.head.weight],
        "layer_13_no_decay": [tower.norm.weight, tower.norm.bias, model.head.bias],
    }
    for name, parameters in holds.items():
        assert {id(p) for p in found[name]["params"]} == {id(p) for p in parameters}
    counted = sum(len(group["params"]) for group in groups)
    assert counted == len(list(model.parameters()))


def test_layer_decay__builds_a_wrapper_without_the_frozen(model: Segmentor) -> None:
    model.backbone.requires_grad_(False)
    wrapper = constructor(decay_rate=0.65)(model)
    parameters = [p for group in wrapper.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in model.head.parameters()}


@pytest.mark.parametrize("rate", [None, 0.0, 1.5, "high"])
def test_layer_decay__needs_a_rate(rate: object) -> None:
    with pytest.raises(ValueError, match=r"decay_rate is .*; use a number in \(0, 1\]"):
        constructor(decay_rate=rate)


def test_layer_decay__unknown_key() -> None:
    with pytest.raises(ValueError, match=r"does not know \['num_layers'\]"):
        constructor(decay_rate=0.5, num_layers=12)


def test_layer_decay__backbone_that_does_not_answer() -> None:
    with pytest.raises(ValueError, match="The backbone Linear does not say to which layer"):
        constructor(decay_rate=0.5).groups(Segmentor(nn.Linear(2, 2)))


def test_bfloat16_wrapper__runs_under_autocast_on_cpu(model: Segmentor) -> None:
    wrapper = OPTIM_WRAPPERS.build(
        {
            "type": "BFloat16OptimWrapper",
            "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        }
    )
    before = model.head.weight.detach().clone()
    with wrapper.optim_context(model):
        output = model.backbone(torch.randn(2, 3, 16, 16))[-1].mean((2, 3))
        scores = model.head(output)
    assert scores.dtype == torch.bfloat16
    wrapper.update_params(scores.float().square().mean())
    assert model.head.weight.dtype == torch.float32
    assert not torch.equal(before, model.head.weight)
