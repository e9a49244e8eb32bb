"""Tests and validation run their forward passes in bfloat16."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.evaluator import Evaluator
from torch import Tensor, nn

from maskclip_bench.backbones.openmmlab.loops import BFloat16TestLoop, BFloat16ValLoop


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.seen: list[torch.dtype] = []

    def step(self, batch: Tensor) -> list[Any]:
        self.seen.append(self.layer(batch).dtype)
        return [SimpleNamespace(keys=lambda: [])]

    test_step = val_step = step


class Metric(Evaluator):
    def __init__(self) -> None:
        self.metrics = []

    def process(self, **given: Any) -> None:
        pass

    def evaluate(self, size: int) -> dict[str, float]:
        return {"score": 1.0}


@pytest.mark.parametrize("kind", [BFloat16TestLoop, BFloat16ValLoop])
def test_loops__in_bfloat16(kind: type) -> None:
    model = Model()
    runner: Any = SimpleNamespace(
        model=model,
        call_hook=lambda *given, **options: None,
        visualizer=SimpleNamespace(),
    )
    loader: Any = torch.utils.data.DataLoader(torch.zeros(2, 2), batch_size=1)
    before = torch.get_autocast_dtype("cuda")
    assert kind(runner, loader, Metric()).run() == {"score": 1.0}
    assert model.seen == [torch.bfloat16] * 2
    assert torch.get_autocast_dtype("cuda") == before
