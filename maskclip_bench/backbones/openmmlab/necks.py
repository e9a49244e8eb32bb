"""Pyramids on a plain (one-scale) backbone: ViTDet's simple feature pyramid, BEiT's for UperNet.

A ViT gives every map at stride `patch_size`. Detection and segmentation heads want several
strides; both necks make them by deconvolution and pooling, without lateral connections.

Shapes: B images, C channels of a tap, grid h x w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module(name="LN2d")
class ChannelLayerNorm(nn.Module):
    """Layer normalization over the channels of [B, C, H, W], as in ViTDet's necks and heads.

    The output is contiguous: RoIAlign kernels that read memory without strides see the right map.
    """

    _abbr_ = "ln"

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        last = maps.permute(0, 2, 3, 1)
        normalized = F.layer_norm(last, last.shape[-1:], self.weight, self.bias, self.eps)
        return normalized.permute(0, 3, 1, 2).contiguous()


def rescale(channels: int, factor: float, norm_cfg: dict | None) -> tuple[nn.Sequential, int]:
    """Layers that change a map's resolution by `factor`, a power of two; and their output channels.

    Up by 2: one deconvolution. Up by 2^k: k of them, with norm and GELU in between. Down: max
    pooling. With `norm_cfg`; channels are halved at each deconvolution if `norm_cfg` is LN2d
    (ViTDet, Sec. 3), and kept otherwise (BEiT).

    Raises:
        ValueError: `factor` is no power of two.
    """
    steps = math.log2(factor) if factor > 0 else math.nan
    if not float(steps).is_integer():
        raise ValueError(f"Cannot rescale a map by {factor}; use powers of two (4, 2, 1, 0.5).")
    halve = norm_cfg is not None and norm_cfg.get("type") == "LN2d"
    layers: list[nn.Module] = []
    for step in range(int(max(steps, 0))):
        if step:
            layers += [build_norm_layer(norm_cfg, channels)[1], nn.GELU()]
        following = channels // 2 if halve else channels
        layers.append(nn.ConvTranspose2d(channels, following, kernel_size=2, stride=2))
        channels = following
    if steps < 0:
        layers.append(nn.MaxPool2d(kernel_size=int(1 / factor), stride=int(1 / factor)))
    return nn.Sequential(*layers), channels


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """ViTDet's pyramid from the last map alone (Li et al., 2022, arXiv 2203.16527, Sec. 3).

    Args:
        in_channels: C of the map.
        out_channels: Channels of every level.
        scale_factors: Resolution of each level relative to the map, powers of two; the default
            turns stride 16 into 4, 8, 16, 32.
        num_outs: Levels returned; those beyond `scale_factors` subsample the last one by 2 (P6).
        norm_cfg: Norm of all layers.
        init_cfg: mmengine's.

    Raises:
        ValueError: A factor is no power of two, or `num_outs` is below the number of factors.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scale_factors: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or {"type": "LN2d"}
        if num_outs < len(scale_factors):
            raise ValueError(
                f"num_outs={num_outs} is below the {len(scale_factors)} scale_factors. "
                "Ask for as many levels, or more for subsampled ones."
            )
        self.num_outs = num_outs
        self.levels = nn.ModuleList()
        for factor in scale_factors:
            layers, channels = rescale(in_channels, factor, norm_cfg)
            layers.extend(
                [
                    nn.Conv2d(channels, out_channels, kernel_size=1, bias=False),
                    build_norm_layer(norm_cfg, out_channels)[1],
                    nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
                    build_norm_layer(norm_cfg, out_channels)[1],
                ]
            )
            self.levels.append(layers)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of a backbone, of which the last [B, C, h, w] is used -> `num_outs` levels."""
        outputs = [level(maps[-1]).contiguous() for level in self.levels]
        while len(outputs) < self.num_outs:
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return tuple(outputs)


@MODELS.register_module()
class DeconvolutionPyramid(BaseModule):
    """BEiT's pyramid for UperNet: tap i is rescaled by factor i (Bao et al., 2022, Appendix).

    Like mmseg's `Feature2Pyramid`, and for more: any powers of two (patches of 8 or 32 pixels),
    one tap for all levels, another number of channels per level.

    Args:
        in_channels: C of the taps.
        scale_factors: Resolution of each level relative to its tap.
        out_channels: None keeps C; a number adds a 1x1 convolution with norm to each level.
        norm_cfg: Norm between deconvolutions.
        init_cfg: mmengine's.

    Raises:
        ValueError: A factor is no power of two.
    """

    def __init__(
        self,
        in_channels: int,
        scale_factors: Sequence[float] = (4, 2, 1, 0.5),
        out_channels: int | None = None,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or {"type": "SyncBN", "requires_grad": True}
        self.levels = nn.ModuleList()
        for factor in scale_factors:
            layers, channels = rescale(in_channels, factor, norm_cfg)
            if out_channels is not None:
                layers.append(nn.Conv2d(channels, out_channels, kernel_size=1, bias=False))
                layers.append(build_norm_layer(norm_cfg, out_channels)[1])
            self.levels.append(layers)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Taps [B, C, h, w], one per level or a single one for all -> one map per level.

        Raises:
            ValueError: The number of taps is neither 1 nor the number of levels.
        """
        if len(maps) not in (1, len(self.levels)):
            raise ValueError(
                f"DeconvolutionPyramid got {len(maps)} maps for {len(self.levels)} levels. Give "
                "the backbone as many out_indices as there are scale_factors, or one."
            )
        taps = maps if len(maps) > 1 else list(maps) * len(self.levels)
        return tuple(level(tap) for level, tap in zip(self.levels, taps, strict=True))


@MODELS.register_module()
class NormalizedTaps(BaseModule):
    """Batch normalization of each tap: the layer before the 1x1 convolution of a linear head.

    Args:
        in_channels: C of the taps.
        num_taps: How many maps come.
        norm_cfg: The norm of each tap.
        init_cfg: mmengine's.
    """

    def __init__(
        self,
        in_channels: int,
        num_taps: int = 1,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or {"type": "SyncBN", "requires_grad": True}
        self.norms = nn.ModuleList(
            build_norm_layer(norm_cfg, in_channels)[1] for _ in range(num_taps)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Taps [B, C, h, w] -> the same shapes, normalized.

        Raises:
            ValueError: Another number of taps came.
        """
        if len(maps) != len(self.norms):
            raise ValueError(
                f"NormalizedTaps got {len(maps)} maps and has num_taps={len(self.norms)}. Set "
                "num_taps to the number of the backbone's out_indices."
            )
        return tuple(norm(tap) for norm, tap in zip(self.norms, maps, strict=True))
