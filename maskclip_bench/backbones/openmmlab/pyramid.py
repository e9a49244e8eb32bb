"""`MaskCLIPPyramid`: a convolutional or hierarchical timm trunk for mmseg and mmdet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.registry import MODELS
from timm.layers import DropPath
from timm.models._features import FeatureGetterNet
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from maskclip_bench.backbones.openmmlab.necks import ChannelLayerNorm
from maskclip_bench.backbones.openmmlab.trunk_backbone import TrunkBackbone, resolve_indices
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.dense_vit import is_dense_vit


@MODELS.register_module()
class MaskCLIPPyramid(TrunkBackbone):
    """A convolutional or hierarchical timm trunk: images -> one map per stage asked for.

    Args:
        out_indices: Stages whose maps are returned; negative ones count from the end.
        norm_outputs: A layer norm over the channels of each map, trained from its start, as in
            the detection and segmentation backbones of Swin and ConvNeXt.
        frozen: No gradient, and evaluation mode even in training (the norms of `norm_outputs` too).
        train_only: Regular expressions of the parameters that are trained; see `TrunkBackbone`.
        lora: Settings of peft's `LoraConfig`; see `TrunkBackbone`.
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
        CheckpointError: (in `init_weights`) The weights are missing or of another architecture.
    """

    def __init__(
        self,
        *,
        out_indices: Sequence[int] = (-4, -3, -2, -1),
        norm_outputs: bool = False,
        frozen: bool = False,
        train_only: Sequence[str] = (),
        lora: Mapping[str, Any] | None = None,
        drop_path_rate: float | None = None,
        num_layers: int | None = None,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **source: Any,
    ) -> None:
        super().__init__(source, frozen=frozen, init_cfg=init_cfg, train_only=train_only, lora=lora)
        self.out_indices: Sequence[int] = out_indices
        self.norm_outputs = norm_outputs
        self.drop_path_rate = drop_path_rate
        self.with_cp = with_cp
        self._asked_layers = num_layers
        self.build()

    def assemble(self, trunk: nn.Module) -> nn.Module:
        """Remove later stages and heads; set norms and stochastic depth."""
        reductions = [info["reduction"] for info in getattr(trunk, "feature_info", ())]
        if not hasattr(trunk, "forward_intermediates") or len(set(reductions)) < 2:
            raise _no_stages(trunk)
        if self.with_cp:
            trunk.set_grad_checkpointing(True)
        _take_any_size(trunk)
        if self.drop_path_rate is not None:
            _set_drop_path(trunk, self.drop_path_rate)
        self.out_indices = resolve_indices(self.out_indices, len(reductions), what="out_indices")
        layers = group_with_matcher(
            trunk.named_parameters(), trunk.group_matcher(coarse=True), reverse=True
        )
        self._layers: dict[str, int] = {name: int(layer) for name, layer in layers.items()}
        self._exempt = frozenset(getattr(trunk, "no_weight_decay", set)())
        tower = FeatureGetterNet(
            trunk, out_indices=list(self.out_indices), norm=False, output_fmt="NCHW"
        )
        self.channels: list[int] = tower.feature_info.channels()
        self.strides: list[int] = tower.feature_info.reduction()
        self.embed_dims = self.channels[-1]
        self.num_layers = self._num_layers(tower)
        if self.norm_outputs:
            tower.norms = nn.ModuleList(ChannelLayerNorm(number) for number in self.channels)
        return tower

    def source_name(self, key: str) -> str | None:
        """Timm's wrapper puts the trunk one level deeper; the norms are our own."""
        if key.startswith("norms."):
            return None
        return super().source_name(key.removeprefix("model."))

    def _num_layers(self, tower: Any) -> int:
        """L of the layer decay: what was asked for, or the stages in use."""
        asked = self._asked_layers
        deepest = max(self._layers[name] for name, _ in tower.model.named_parameters())
        if asked is not None and asked < deepest:
            raise ConfigError(f"num_layers={asked} is less than the {deepest} stages in use.")
        return deepest if asked is None else asked

    def feature_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> tuple of [B, channels, H / stride, W / stride], contiguous."""
        trunk: Any = self.trunk
        maps = trunk(images)
        if self.norm_outputs:
            maps = [norm(each) for norm, each in zip(trunk.norms, maps, strict=True)]
        return tuple(each.contiguous() for each in maps)

    def layer_of(self, parameter_name: str) -> int:
        """Layer of a parameter, in timm's own grouping: stem 0, stage i + 1, norms of maps L + 1.

        Raises:
            KeyError: No such parameter.
        """
        if parameter_name.startswith("tower.norms."):
            return self.num_layers + 1
        return self._layers[self._own_name(parameter_name)]

    def has_weight_decay(self, parameter_name: str, parameter: nn.Parameter) -> bool:
        """Matrices and kernels decay; vectors and what timm exempts do not."""
        name = self._own_name(parameter_name)
        return parameter.ndim > 1 and not any(part in name for part in self._exempt)

    def _own_name(self, parameter_name: str) -> str:
        name = parameter_name.removeprefix("tower.model.").replace(".base_layer.", ".")
        return re.sub(r"\.lora_\w+\..*", ".weight", name)


def _no_stages(trunk: nn.Module) -> ConfigError:
    name = type(trunk).__name__
    if is_dense_vit(trunk):
        return ConfigError(f"{name} has maps of one stride. Use MaskCLIPViT for it.")
    return ConfigError(
        f"{name} does not say the strides of its stages, or has maps of one stride, and is no ViT "
        "that can be run block by block: neither MaskCLIPPyramid nor MaskCLIPViT can run it. Use "
        "a trunk of timm with stages (ConvNeXt, Swin, ResNet), or a ViT."
    )


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
