from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from maskclip_bench.errors import ConfigError
from maskclip_bench.pretrain.run_length import RunLength, batch_size_per_gpu


def length(tiny: ModuleType, *, batches_per_epoch: int = 10, **changes: Any) -> RunLength:
    return RunLength.of(tiny.tiny_recipe(**changes), batches_per_epoch=batches_per_epoch)


def test_run_length__in_pairs(tiny: ModuleType) -> None:
    found = length(tiny, num_pairs=16 * 6 + 5, checkpoint={"every_steps": None})
    assert found == RunLength(
        steps_per_epoch=10, total_steps=6, warmup_steps=2, checkpoint_every=10, evaluate_every=None
    )


def test_run_length__in_epochs(tiny: ModuleType) -> None:
    found = length(
        tiny,
        batches_per_epoch=9,
        num_pairs=None,
        epochs=2.5,
        accumulation_steps=2,
        optimizer={"warmup_steps": None, "warmup_epochs": 0.5},
        evaluation={"every_epochs": 0.1},
    )
    assert found == RunLength(
        steps_per_epoch=4, total_steps=10, warmup_steps=2, checkpoint_every=2, evaluate_every=1
    )


def test_run_length__no_warmup(tiny: ModuleType) -> None:
    assert length(tiny, optimizer={"warmup_steps": None}).warmup_steps == 0


def test_run_length__an_epoch_of_less_than_a_step(tiny: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"An epoch has 1 micro-batches, fewer than accumulation"):
        length(tiny, batches_per_epoch=1, accumulation_steps=2)


def test_batch_size_per_gpu(tiny: ModuleType) -> None:
    assert batch_size_per_gpu(tiny.tiny_recipe(accumulation_steps=2), 4) == 2
    with pytest.raises(ConfigError, match=r"global_batch_size=16 cannot be divided over 3 proc"):
        batch_size_per_gpu(tiny.tiny_recipe(), 3)
