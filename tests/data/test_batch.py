from __future__ import annotations

import dataclasses

import pytest
import torch

from maskclip_bench.data.batch import Batch, RawBatch, with_tensors


def raw_batch(num_views: int = 2) -> RawBatch:
    views = [torch.full((2, 3, 4, 4), n, dtype=torch.uint8) for n in range(num_views + 1)]
    return RawBatch(views[0], torch.zeros(2, 5, dtype=torch.int64), tuple(views[1:]), ["a", "b"])


def test_pin_memory__keeps_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = raw_batch()
    result = batch.pin_memory()
    assert len(pinned) == 4 and result.keys == ["a", "b"]
    assert torch.equal(result.images, batch.images) and len(result.ssl_images) == 2


def test_captions__on_the_cpu_if_they_are_there() -> None:
    tokens, on_cpu = torch.zeros(1, 3), torch.ones(1, 3)
    generator = torch.Generator()
    assert Batch(tokens, tokens, (), generator).captions is tokens
    assert Batch(tokens, tokens, (), generator, tokens_on_cpu=on_cpu).captions is on_cpu


def test_with_tensors__reaches_every_tensor_and_leaves_the_rest() -> None:
    @dataclasses.dataclass(frozen=True)
    class Pair:
        number: int
        tensor: torch.Tensor | None

    value = {"a": torch.ones(2), "b": [Pair(3, torch.ones(1)), Pair(4, None)], "c": ("x", 1.5)}
    doubled = with_tensors(value, lambda tensor: 2 * tensor)
    assert doubled["a"].tolist() == [2, 2]
    assert doubled["b"][0].number == 3
    assert doubled["b"][0].tensor.tolist() == [2]
    assert doubled["b"][1] == Pair(4, None)
    assert doubled["c"] == ("x", 1.5)
    assert value["a"].tolist() == [1, 1]
