from __future__ import annotations

import torch
from torch import nn

from maskclip_bench.training.optim import build_optimizer, set_learning_rate


def build(module: nn.Module, *, fused: bool = True) -> torch.optim.AdamW:
    return build_optimizer(
        module,
        lr=0.1,
        weight_decay=0.3,
        betas=(0.9, 0.98),
        eps=1e-8,
        no_weight_decay={"0.bias"},
        fused=fused,
    )


def module_with_gradients() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[1].weight.requires_grad_(False)
    module(torch.ones(2, 3)).square().sum().backward()
    return module


def test_build_optimizer__groups() -> None:
    module = module_with_gradients()
    optimizer = build(module)
    decayed, exempt = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3
    assert exempt["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(module[0].weight), id(module[1].bias)]
    assert [id(p) for p in exempt["params"]] == [id(module[0].bias)]


def test_build_optimizer__fused_equals_plain() -> None:
    modules = [module_with_gradients(), module_with_gradients()]
    for module, fused in zip(modules, (True, False), strict=True):
        build(module, fused=fused).step()
    torch.testing.assert_close(modules[0].state_dict(), modules[1].state_dict())


def test_set_learning_rate__scales_by_group() -> None:
    optimizer = build(module_with_gradients())
    optimizer.param_groups[1]["lr_scale"] = 0.5
    set_learning_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]
