"""AdamW with groups of parameters: with and without weight decay, and by their learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

FUSED_DEVICES = frozenset({"cpu", "cuda"})


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    no_weight_decay: set[str],
    lr_scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Trained parameters, split by whether they decay and by their factor of the learning rate.

    Frozen ones are left out. Groups with decay come first, large factors before small ones; a
    factor of 1 is not written down.

    Args:
        named_parameters: Names and parameters.
        weight_decay: Of those not in `no_weight_decay`.
        no_weight_decay: Names exempt from decay.
        lr_scales: Factors of the learning rate by name; 1 where there is none.
    """
    scales = lr_scales or {}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            key = (name in no_weight_decay, -scales.get(name, 1.0))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": groups[exempt, scale],
            "weight_decay": 0.0 if exempt else weight_decay,
            **({} if scale == -1.0 else {"lr_scale": -scale}),
        }
        for exempt, scale in sorted(groups)
    ]


def build_optimizer(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    no_weight_decay: set[str],
    lr_scales: Mapping[str, float] | None = None,
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW, in one kernel where the device has one.

    Args:
        module: Its trained parameters, under the names `no_weight_decay` uses.
        lr: Overwritten before every step by the schedule.
        weight_decay: Of the parameters not in `no_weight_decay`.
        betas: Of AdamW.
        eps: Of AdamW.
        no_weight_decay: Names exempt from decay.
        lr_scales: Factors of the learning rate by name; 1 where there is none.
        fused: Whether to use the fused kernel if the device has it.
    """
    groups = parameter_groups(
        module.named_parameters(),
        weight_decay=weight_decay,
        no_weight_decay=no_weight_decay,
        lr_scales=lr_scales,
    )
    devices = {parameter.device.type for parameter in module.parameters()}
    return torch.optim.AdamW(
        groups, lr=lr, betas=betas, eps=eps, fused=fused and devices <= FUSED_DEVICES
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group (times the group's `lr_scale`, if it has one)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
