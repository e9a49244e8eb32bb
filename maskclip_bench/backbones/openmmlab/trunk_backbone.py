"""What both OpenMMLab backbones share: the source of their weights, and freezing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from maskclip_bench.backbones.openmmlab.trunk_sources import TrunkSource, load_trunk
from maskclip_bench.config import validate
from maskclip_bench.errors import ConfigError


class TrunkBackbone(BaseModule):
    """Base of `MaskCLIPViT` and `MaskCLIPPyramid`.

    Args:
        frozen: No gradient, and evaluation mode even in training.
        init_cfg: mmengine's; only None is taken, because the weights come from the source.

    Raises:
        ConfigError: `init_cfg` is given.
    """

    def __init__(self, *, frozen: bool, init_cfg: object) -> None:
        super().__init__()
        if init_cfg is not None:
            raise ConfigError(
                f"init_cfg={init_cfg!r}: the weights of this backbone come from its source. Set "
                "backbone=, checkpoint=, timm= or open_clip= instead."
            )
        self.frozen = frozen

    def load_source(self, source: dict[str, Any]) -> nn.Module:
        """The trunk that the arguments of the config name (see `TrunkSource`).

        Raises:
            ConfigError: Not exactly one source, or arguments that do not go with it.
            CheckpointError: The weights are missing or of another architecture.
        """
        return load_trunk(validate(source, TrunkSource, where=type(self).__name__))

    def freeze_if_asked(self) -> None:
        """Called at the end of a constructor."""
        if self.frozen:
            self.requires_grad_(False)
            self.eval()

    def init_weights(self) -> None:
        """Keep the weights: mmengine would let timm modules initialize them again."""
        self._is_init = True

    def train(self, mode: bool = True) -> TrunkBackbone:
        """A frozen backbone stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> tuple of [B, channels, H / stride, W / stride], contiguous.

        Raises:
            ValueError: The trunk cannot take images of this size.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.feature_maps(images)

    def feature_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `forward`."""
        raise NotImplementedError


def resolve_indices(indices: Sequence[int], depth: int, *, what: str) -> tuple[int, ...]:
    """Indices of blocks or stages, ascending and counted from 0.

    Raises:
        ConfigError: One is out of range, or there are no `out_indices`.
    """
    resolved = sorted({index + depth if index < 0 else index for index in indices})
    if any(not 0 <= index < depth for index in resolved) or (what == "out_indices" and not indices):
        raise ConfigError(
            f"{what}={tuple(indices)} for {depth} blocks or stages: use numbers from 0 to "
            f"{depth - 1}, or from {-depth} to -1."
        )
    return tuple(resolved)
