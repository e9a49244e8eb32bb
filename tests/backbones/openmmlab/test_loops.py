"""Tests and validation run their forward passes in bfloat16."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from maskclip_bench.backbones.openmmlab.loops import (
    AsideValLoop,
    BFloat16TestLoop,
    BFloat16ValLoop,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.seen: list[torch.dtype] = []

    def step(self, batch: Tensor) -> list[Any]:
        outputs = self.layer(batch)
        self.seen.append(outputs.dtype)
        objects = InstanceData(scores=outputs[:, 0], labels=torch.zeros(len(outputs)).long())
        sample = BaseDataElement()
        sample.pred_instances = objects
        return [sample]

    test_step = val_step = step


class Metric(Evaluator):
    def __init__(self) -> None:
        self.metrics = []

    def process(self, data_samples: Any, **given: Any) -> None:
        for sample in data_samples:
            if hasattr(sample, "pred_instances"):  # as COCO's metric does
                assert sample.pred_instances.scores.numpy().dtype == np.float32
                assert sample.pred_instances.labels.numpy().dtype == np.int64

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
    assert "step" not in "".join(vars(model))


class Drawing(Model):
    """Draws from all generators."""

    def step(self, batch: Tensor) -> list[Any]:
        self.seen.append(torch.rand(()).dtype)
        np.random.rand()  # noqa: NPY002
        random.random()
        return [SimpleNamespace(keys=lambda: [])]

    test_step = val_step = step


def test_loops__aside_leaves_the_generators_as_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        random.seed(3)

    runner: Any = SimpleNamespace(
        model=Drawing(), call_hook=lambda *given, **options: None, visualizer=SimpleNamespace()
    )
    loader: Any = torch.utils.data.DataLoader(torch.zeros(2, 2), batch_size=1, shuffle=True)
    seed()
    expected = draw()
    seed()
    assert AsideValLoop(runner, loader, Metric()).run() == {"score": 1.0}
    assert len(runner.model.seen) == 2
    assert draw() == expected
