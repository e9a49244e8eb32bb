from __future__ import annotations

import pytest
import torch

from maskclip_bench.data.batch import Batch, RawBatch


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
