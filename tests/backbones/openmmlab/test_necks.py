from __future__ import annotations

import pytest
import torch
from torch import nn

from maskclip_bench.backbones.openmmlab.necks import (
    ChannelLayerNorm,
    DeconvolutionPyramid,
    NormalizedTaps,
    SimpleFeaturePyramid,
    rescale,
)


def test_channel_layer_norm__equals_layer_norm_and_is_contiguous() -> None:
    maps = torch.randn(2, 6, 3, 5).contiguous(memory_format=torch.channels_last)
    ours, reference = ChannelLayerNorm(6), nn.LayerNorm(6, eps=1e-6)
    nn.init.normal_(ours.weight)
    reference.weight.data.copy_(ours.weight)
    expected = reference(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    output = ours(maps)
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous()


def test_simple_feature_pyramid__strides_and_contiguity() -> None:
    neck = SimpleFeaturePyramid(16, out_channels=8, num_outs=5)
    unused = torch.randn(1, 16, 6, 4)
    levels = neck([unused, torch.randn(1, 16, 8, 12)])
    assert [tuple(level.shape) for level in levels] == [
        (1, 8, 32, 48),
        (1, 8, 16, 24),
        (1, 8, 8, 12),
        (1, 8, 4, 6),
        (1, 8, 2, 3),
    ]
    assert all(level.is_contiguous() for level in levels)
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


def test_simple_feature_pyramid__too_few_outputs() -> None:
    with pytest.raises(ValueError, match="num_outs=2 is below the 4 scale_factors"):
        SimpleFeaturePyramid(16, num_outs=2)


def test_deconvolution_pyramid__one_factor_a_tap() -> None:
    neck = DeconvolutionPyramid(16, scale_factors=(8, 2, 1, 0.5), norm_cfg={"type": "BN"})
    taps = [torch.randn(2, 16, 4, 6) for _ in range(4)]
    sizes = [tuple(level.shape[1:]) for level in neck(taps)]
    assert sizes == [(16, 32, 48), (16, 8, 12), (16, 4, 6), (16, 2, 3)]


def test_deconvolution_pyramid__one_tap_for_all() -> None:
    neck = DeconvolutionPyramid(16, scale_factors=(2, 1), out_channels=5, norm_cfg={"type": "BN"})
    sizes = [tuple(level.shape[1:]) for level in neck([torch.randn(2, 16, 4, 6)])]
    assert sizes == [(5, 8, 12), (5, 4, 6)]


def test_deconvolution_pyramid__wrong_number_of_taps() -> None:
    neck = DeconvolutionPyramid(16, norm_cfg={"type": "BN"})
    with pytest.raises(ValueError, match="got 3 maps for 4 levels"):
        neck([torch.randn(1, 16, 4, 4)] * 3)


def test_rescale__needs_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="Cannot rescale a map by 3; use powers of two"):
        rescale(8, 3, None)


def test_normalized_taps__one_norm_each() -> None:
    neck = NormalizedTaps(4, num_taps=2, norm_cfg={"type": "BN"})
    taps = [torch.randn(8, 4, 3, 3) * 5 + 2 for _ in range(2)]
    for output in neck(taps):
        assert output.mean().abs() < 1e-5
        assert (output.std() - 1).abs() < 0.01
    with pytest.raises(ValueError, match="got 1 maps and has num_taps=2"):
        neck(taps[:1])
