from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from maskclip_bench.backbones.openmmlab.pyramid import MaskCLIPPyramid
from maskclip_bench.errors import ConfigError


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet"])
def test_pyramid__stages_as_timms(name: str, tiny: Any) -> None:
    torch.manual_seed(0)
    backbone = MaskCLIPPyramid(timm=name, out_indices=(-2, -1)).eval()
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    picture = tiny.images((64, 96))
    expected = model.forward_intermediates(picture, indices=2, intermediates_only=True)
    outputs = backbone(picture)
    for output, other, stride in zip(outputs, expected, backbone.strides, strict=True):
        torch.testing.assert_close(output, other, atol=1e-5, rtol=0)
        assert output.shape[-2:] == (64 // stride, 96 // stride)
    backbone.init_weights()
    torch.testing.assert_close(backbone(picture)[1], expected[1], atol=1e-5, rtol=0)
    layers = {backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert layers == set(range(5))  # the stem and four stages
    assert backbone.num_layers == 4
    for name, parameter in backbone.named_parameters():
        assert backbone.has_weight_decay(name, parameter) == (parameter.ndim > 1)


def test_pyramid__layer_decay_as_convnexts_authors() -> None:
    """Their 12 layers: the stem 13 steps from the heads, the four stages 12 to 9."""
    backbone = MaskCLIPPyramid(timm="test_convnext", num_layers=12)
    assert backbone.layer_of("tower.model.stem.0.weight") == 0
    assert backbone.layer_of("tower.model.stages.3.blocks.0.conv_dw.weight") == 4
    assert backbone.num_layers + 1 - 4 == 9
    with pytest.raises(ConfigError, match="num_layers=3 is less than the 4 stages in use"):
        MaskCLIPPyramid(timm="test_convnext", num_layers=3)


@pytest.mark.parametrize("name", ["test_convnext", "swin_tiny_patch4_window7_224"])
def test_pyramid__drop_path_grows_as_timms(name: str, tiny: Any) -> None:
    small = {"depths": (1, 1, 1, 1), "embed_dim": 24} if "swin" in name else {}
    backbone = MaskCLIPPyramid(timm=name, model_args=small, drop_path_rate=0.3)
    model = timm.create_model(name, drop_path_rate=0.3, **small)

    def rates(trunk: nn.Module) -> list[float]:
        return [module.drop_prob for module in trunk.modules() if hasattr(module, "drop_prob")]

    assert len(rates(model)) > 1
    assert rates(backbone) == pytest.approx(rates(model))
    backbone.train()(tiny.images((64, 64)))[0].sum().backward()


def test_pyramid__no_stochastic_depth() -> None:
    with pytest.raises(
        ConfigError, match=r"ResNet has no stochastic depth\. Set drop_path_rate=None"
    ):
        MaskCLIPPyramid(timm="test_resnet", drop_path_rate=0.1)


def test_pyramid__swin_at_another_size(tiny: Any) -> None:
    arguments = {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 2), "num_classes": 0}
    source = {"timm": "swin_tiny_patch4_window7_224", "model_args": arguments}
    torch.manual_seed(0)
    backbone = MaskCLIPPyramid(**source, out_indices=(0, 1)).eval()
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", **arguments).eval()
    native, other = tiny.images((224, 224))[:1], tiny.images((256, 320))[:1]
    expected = model.forward_intermediates(native, intermediates_only=True)
    torch.testing.assert_close(backbone(native)[1], expected[1], atol=1e-5, rtol=0)
    model.set_input_size((256, 320), window_size=7)
    expected = model.forward_intermediates(other, intermediates_only=True)
    for output, wanted in zip(backbone(other), expected, strict=True):
        torch.testing.assert_close(output, wanted, atol=1e-5, rtol=0)


def test_pyramid__frozen(tiny: Any) -> None:
    backbone = MaskCLIPPyramid(timm="test_convnext", frozen=True).train()
    assert not backbone.training
    assert not backbone(tiny.images((64, 64)))[0].requires_grad
