"""Layer-wise learning-rate decay that asks the backbone, and bf16 training without a scaler."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneLayerDecay(DefaultOptimWrapperConstructor):
    """Parameter groups with lr = base * decay_rate^(L + 1 - layer) (BEiT; Clark et al., 2020).

    `layer` is 0 for the embedding, i + 1 for block i, L + 1 for everything after the backbone.
    The backbone answers for its own parameters through three members: `num_layers` (L),
    `layer_of(parameter_name) -> int` and `has_weight_decay(parameter_name, parameter) -> bool`.
    Elsewhere vectors (biases, norms) have no weight decay.

    Config:
        ``optim_wrapper = dict(constructor='BackboneLayerDecay',
        paramwise_cfg=dict(decay_rate=0.65), optimizer=...)``

    Raises:
        ValueError: `decay_rate` is missing or not in (0, 1], an unknown key came, or the model's
            backbone does not answer.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, None)
        settings = dict(paramwise_cfg or {})
        rate = settings.pop("decay_rate", None)
        if settings:
            raise ValueError(
                f"BackboneLayerDecay does not know {sorted(settings)}; "
                "paramwise_cfg holds decay_rate alone."
            )
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(f"decay_rate is {rate!r}; use a number in (0, 1], 1 for no decay.")
        self.decay_rate = float(rate)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of `model` and wrap it."""
        if is_model_wrapper(model):
            model = model.module
        wrapper_cfg = self.optim_wrapper_cfg.copy()
        wrapper_cfg.setdefault("type", "OptimWrapper")
        optimizer_cfg = self.optimizer_cfg.copy()
        optimizer_cfg["params"] = self.groups(model)
        from mmengine.registry import OPTIMIZERS

        optimizer = OPTIMIZERS.build(optimizer_cfg)
        return OPTIM_WRAPPERS.build(wrapper_cfg, default_args={"optimizer": optimizer})

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups, from the embedding to the heads; frozen parameters are in none."""
        backbone = getattr(model, "backbone", None)
        if not hasattr(backbone, "layer_of"):
            raise ValueError(
                f"The backbone {type(backbone).__name__} does not say to which layer a parameter "
                "belongs (num_layers, layer_of, has_weight_decay). Use MaskCLIPViT or "
                "MaskCLIPPyramid, or another optimizer constructor."
            )
        last = backbone.num_layers + 1
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            own = name.removeprefix("backbone.")
            if own != name:
                layer = backbone.layer_of(own)
                decays = backbone.has_weight_decay(own, parameter)
            else:
                layer, decays = last, parameter.ndim > 1
            if (layer, decays) not in groups:
                scale = self.decay_rate ** (last - layer)
                groups[layer, decays] = {
                    "params": [],
                    "param_names": [],
                    "group_name": f"layer_{layer}_{'decay' if decays else 'no_decay'}",
                    "lr_scale": scale,
                    "lr": self.base_lr * scale,
                    "weight_decay": (self.base_wd or 0.0) if decays else 0.0,
                }
            groups[layer, decays]["params"].append(parameter)
            groups[layer, decays]["param_names"].append(name)
        ordered = [groups[key] for key in sorted(groups)]
        for group in ordered:
            print_log(
                f"{group['group_name']}: lr {group['lr']:.3g}, {len(group['params'])} tensors",
                logger="current",
                level=logging.DEBUG,
            )
            group.pop("param_names")
        return ordered


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16, on CPU as on GPU.

    bfloat16 has float32's range, so losses need no scaling; mmengine's `AmpOptimWrapper` insists
    on a GPU and on a scaler.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass of a training step under autocast."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield
