"""`MaskCLIPPyramid`: a convolutional or hierarchical timm trunk for mmseg and mmdet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.registry import MODELS
from timm.layers import DropPath
from timm.models._features import FeatureGetterNet
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from maskclip_bench.backbones.openmmlab.trunk_backbone import TrunkBackbone, resolve_indices
from maskclip_bench.errors import ConfigError


@MODELS.register_module()
class MaskCLIPPyramid(TrunkBackbone):
    """A convolutional or hierarchical timm trunk: images -> one map per stage asked for.

    Args:
        out_indices: Stages whose maps are returned; negative ones count from the end.
        frozen: No gradient, and evaluation mode even in training.
        drop_path_rate: Stochastic depth of the last block; the others grow to it linearly. None
            leaves what the trunk was made with.
        num_layers: L of the layer decay. Stages count one layer each, and the stem is layer 0; a
            larger L than stages puts them all further from the heads, as in ConvNeXt's recipes.
            None = the number of stages.
        with_cp: Gradient checkpointing, where the trunk has it.
        init_cfg: mmengine's; only None is taken, because the weights come from the source.
        source: Where the weights come from; see `TrunkSource` for its keys.

    Attributes:
        strides: Pixels per cell of each map.
        channels: Channels of each map.

    Raises:
        ConfigError: The trunk has no stages or no stochastic depth, an index is out of range,
            `num_layers` is too small, or `init_cfg` is given.
        CheckpointError: The weights are missing or of another architecture.
    """

    def __init__(
        self,
        *,
        out_indices: Sequence[int] = (-4, -3, -2, -1),
        frozen: bool = False,
        drop_path_rate: float | None = None,
        num_layers: int | None = None,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **source: Any,
    ) -> None:
        super().__init__(frozen=frozen, init_cfg=init_cfg)
        trunk = self.load_source(source)
        if not hasattr(trunk, "feature_info") or not hasattr(trunk, "forward_intermediates"):
            raise ConfigError(
                f"{type(trunk).__name__} has no stages to return. Use MaskCLIPViT for a plain ViT."
            )
        if with_cp:
            trunk.set_grad_checkpointing(True)
        _take_any_size(trunk)
        if drop_path_rate is not None:
            _set_drop_path(trunk, drop_path_rate)
        self.out_indices = resolve_indices(out_indices, len(trunk.feature_info), what="out_indices")
        layers = group_with_matcher(
            trunk.named_parameters(), trunk.group_matcher(coarse=True), reverse=True
        )
        self._layers: dict[str, int] = {name: int(layer) for name, layer in layers.items()}
        self._exempt = frozenset(getattr(trunk, "no_weight_decay", set)())
        self.trunk = FeatureGetterNet(
            trunk, out_indices=list(self.out_indices), norm=False, output_fmt="NCHW"
        )
        self.channels: list[int] = self.trunk.feature_info.channels()
        self.strides: list[int] = self.trunk.feature_info.reduction()
        self.embed_dims = self.channels[-1]
        self.num_layers = self._num_layers(num_layers)
        self.freeze_if_asked()

    def _num_layers(self, asked: int | None) -> int:
        """L of the layer decay: what was asked for, or the stages in use."""
        deepest = max(self._layers[name] for name, _ in self.trunk.model.named_parameters())
        if asked is not None and asked < deepest:
            raise ConfigError(f"num_layers={asked} is less than the {deepest} stages in use.")
        return deepest if asked is None else asked

    def feature_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> tuple of [B, channels, H / stride, W / stride], contiguous."""
        return tuple(feature.contiguous() for feature in self.trunk(images))

    def layer_of(self, parameter_name: str) -> int:
        """Layer of a parameter, in timm's own grouping: stem 0, stage i + 1.

        Raises:
            KeyError: No such parameter.
        """
        return self._layers[parameter_name.removeprefix("trunk.model.")]

    def has_weight_decay(self, parameter_name: str, parameter: nn.Parameter) -> bool:
        """Matrices and kernels decay; vectors and what timm exempts do not."""
        name = parameter_name.removeprefix("trunk.model.")
        return parameter.ndim > 1 and not any(part in name for part in self._exempt)


def _take_any_size(trunk: nn.Module) -> None:
    """Let a trunk with window masks (Swin) take images of any size, its windows as they are."""
    for module in trunk.modules():
        if hasattr(module, "strict_img_size"):
            module.strict_img_size = False
        if hasattr(module, "dynamic_mask"):
            module.dynamic_mask = True


def _set_drop_path(trunk: nn.Module, rate: float) -> None:
    """Stochastic depth in all residual branches, growing from block to block."""
    blocks = [names for module in trunk.modules() if (names := list(_drop_paths(module)))]
    if not blocks:
        raise ConfigError(
            f"{type(trunk).__name__} has no stochastic depth. Set drop_path_rate=None."
        )
    for index, sites in enumerate(blocks):
        block_rate = rate * index / max(len(blocks) - 1, 1)
        for module, name in sites:
            setattr(module, name, DropPath(block_rate) if block_rate else nn.Identity())


def _drop_paths(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for name in ("drop_path", "drop_path1", "drop_path2"):
        if isinstance(getattr(module, name, None), nn.Module):
            yield module, name
