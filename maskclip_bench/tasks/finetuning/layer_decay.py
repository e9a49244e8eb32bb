"""Which layer a parameter belongs to, and the parameter groups that follow from it.

Layer 0 is the embedding of patches with positions, prefix tokens and the norm before the blocks;
block i is layer i + 1; what comes after the blocks, the head included, is layer L + 1. The rate of
layer l is `layer_decay ** (L + 1 - l)` of the head's (BEiT `optim_factory.py`, MAE `lr_decay.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from timm.models import group_parameters
from torch import nn

from maskclip_bench.backbones.encoders import vision_trunk
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.vit import is_vit, vit_parts

logger = logging.getLogger(__name__)

AFTER_BLOCKS = ("norm", "fc_norm", "ln_post", "proj", "attn_pool", "head", "head_drop")
"""Children of a ViT trunk that are behind its blocks (timm's and open_clip's names)."""


class Layers:
    """The layers of an encoder's trunk.

    Attributes:
        depth: L, the number of layers between the first and the last.
        known: Whether the trunk says which layers it has; else all of it is one layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layer: dict[int, int] = {}
        self._exempt: set[int] = set()
        self.depth = 0
        self.known = True
        trunk = _trunk(model)
        if trunk is not None and is_vit(trunk):
            self._of_vit(trunk)
        elif trunk is not None and hasattr(trunk, "group_matcher"):
            self._of_timm(trunk)
        else:
            self.known = False

    def _of_vit(self, trunk: nn.Module) -> None:
        parts = vit_parts(trunk)
        self.depth = len(parts.blocks)
        in_blocks = {
            id(parameter): index + 1
            for index, block in enumerate(parts.blocks)
            for parameter in block.parameters()
        }
        for name, parameter in trunk.named_parameters():
            behind = name.partition(".")[0] in AFTER_BLOCKS
            layer = self.depth + 1 if behind else 0
            self._layer[id(parameter)] = in_blocks.get(id(parameter), layer)
            if "." not in name and layer == 0:  # tokens and positions are the trunk's own
                self._exempt.add(id(parameter))

    def _of_timm(self, trunk: Any) -> None:
        """As timm itself groups the parameters of a model that is no ViT."""
        groups = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
        self.depth = max(groups.values(), default=0)
        named = dict(trunk.named_parameters())
        self._layer = {id(named[name]): layer for name, layer in groups.items() if name in named}
        exempt: set[str] = getattr(trunk, "no_weight_decay", set)()
        self._exempt = {id(named[name]) for name in exempt if name in named}

    def of(self, parameter: nn.Parameter) -> int:
        """The layer of a parameter; those of no layer are in the last."""
        return self._layer.get(id(parameter), self.depth + 1)

    def decays(self, parameter: nn.Parameter) -> bool:
        """Whether weight decay is for it: no vector, position or prefix token."""
        return parameter.ndim > 1 and id(parameter) not in self._exempt


def _trunk(model: nn.Module) -> nn.Module | None:
    try:
        return vision_trunk(model)
    except ConfigError:
        return None


def decayed_groups(
    parameters: Iterable[nn.Parameter],
    layers: Layers,
    *,
    layer_decay: float,
    weight_decay: float,
    decay_everything: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, from the first layer to the last.

    Args:
        parameters: What is trained.
        layers: Their layers.
        layer_decay: Factor from layer to layer.
        weight_decay: Of what decays.
        decay_everything: Whether vectors, positions and tokens decay, too.

    Returns:
        Groups with `params`, `lr_scale` (see `training.optim.set_learning_rate`), `weight_decay`,
        `layer`.
    """
    if layer_decay < 1 and not layers.known:
        logger.warning("The model does not say which layers it has: all learn at one rate.")
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for parameter in parameters:
        key = layers.of(parameter), decay_everything or layers.decays(parameter)
        if key not in groups:
            groups[key] = {
                "params": [],
                "lr_scale": layer_decay ** (layers.depth + 1 - key[0]),
                "weight_decay": weight_decay if key[1] else 0.0,
                "layer": key[0],
            }
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_rates(groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Share of the rate by layer, for records."""
    return {str(group["layer"]): float(group["lr_scale"]) for group in groups}
