"""Strategies in one process; several are in tests/pretrain/test_parallel.py."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from maskclip_bench.data.batch import Batch
from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.training.parallel import (
    DDPStrategy,
    FSDPStrategy,
    ParallelStrategy,
    average_gradients,
    transformer_blocks,
)

CPU = torch.device("cpu")


class Trained(nn.Module):
    """A student and a teacher, each a layer."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.model = nn.Linear(3, width)
        self.teacher = nn.Linear(3, width)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        loss = (self.model(batch.images) - self.teacher(batch.images)).square().mean()
        return {"distance_loss": loss, "loss": loss}

    def teacher_model(self) -> nn.Module:
        return self.teacher


def made(width: int = 3) -> tuple[Trained, torch.optim.Optimizer, ParallelStrategy]:
    module = Trained(width)
    optimizer = torch.optim.AdamW(module.parameters())
    return module, optimizer, DDPStrategy(module, device=CPU, accumulates=False)


def a_step(optimizer: torch.optim.Optimizer, strategy: ParallelStrategy) -> None:
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    batch = Batch(torch.randn(2, 3), tokens, (), torch.Generator())
    strategy.forward(batch)["loss"].backward()
    strategy.finish_gradients()
    optimizer.step()


def test_one_process__is_the_module_itself() -> None:
    module, optimizer, strategy = made()
    a_step(optimizer, strategy)
    assert strategy.whole_models() == (module.model, module.teacher)


def test_one_process__state_and_restore() -> None:
    module, optimizer, strategy = made()
    a_step(optimizer, strategy)
    other, other_optimizer, other_strategy = made()
    other_strategy.restore(other_optimizer, *strategy.state(optimizer))
    torch.testing.assert_close(other.state_dict(), module.state_dict(), rtol=0, atol=0)
    assert other_optimizer.state_dict()["state"][0]["step"] == 1


def test_restore__another_model() -> None:
    _, optimizer, strategy = made()
    _, other_optimizer, other_strategy = made(width=4)
    with pytest.raises(CheckpointError, match="The state in the checkpoint is of another model"):
        other_strategy.restore(other_optimizer, *strategy.state(optimizer))


def test_fsdp__needs_processes() -> None:
    with pytest.raises(ConfigError, match=r"parallel=fsdp shards weights over several processes"):
        FSDPStrategy(Trained(), device=CPU, bf16=False)


def test_average_gradients__without_a_gradient_nothing_is_exchanged() -> None:
    average_gradients(Trained().parameters())


def test_transformer_blocks() -> None:
    trunk = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=12, num_heads=1)
    assert list(transformer_blocks(trunk)) == list(trunk.blocks)
    assert list(transformer_blocks(nn.Linear(2, 2))) == []
