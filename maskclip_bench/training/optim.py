"""AdamW with two groups of parameters: with and without weight decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

FUSED_DEVICES = frozenset({"cpu", "cuda"})


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    no_weight_decay: set[str],
) -> list[dict[str, object]]:
    """Trained parameters, split by whether they decay; frozen ones are left out."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (exempt if name in no_weight_decay else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]


def build_optimizer(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    no_weight_decay: set[str],
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
        fused: Whether to use the fused kernel if the device has it.
    """
    groups = parameter_groups(
        module.named_parameters(), weight_decay=weight_decay, no_weight_decay=no_weight_decay
    )
    groups = [group for group in groups if group["params"]]
    devices = {parameter.device.type for parameter in module.parameters()}
    return torch.optim.AdamW(
        groups, lr=lr, betas=betas, eps=eps, fused=fused and devices <= FUSED_DEVICES
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group (times the group's `lr_scale`, if it has one)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
