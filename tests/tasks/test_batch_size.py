"""`--batch-size auto`: doubles until memory refuses, or until it brings nothing."""

from __future__ import annotations

import itertools

import pytest
import torch

from maskclip_bench.errors import ConfigError
from maskclip_bench.tasks.batch_size import batch_size_of, largest_batch

from .conftest import ColourEncoder, make_backbone


class Device:
    """A device of some memory, on which a pass takes some seconds."""

    def __init__(self, memory: int, fastest: int) -> None:
        self.memory, self.fastest = memory, fastest
        self.now = 0.0
        self.sizes: list[int] = []

    def encode(self, size: int) -> None:
        if size > self.memory:
            raise torch.OutOfMemoryError("no memory")
        self.sizes.append(size)
        self.now += 1 + max(0, size - self.fastest)

    def clock(self) -> float:
        return self.now


def test_memory_refuses() -> None:
    device = Device(memory=100, fastest=10_000)
    assert largest_batch(device.encode, clock=device.clock) == 64
    assert sorted(set(device.sizes)) == [16, 32, 64]


def test_nothing_is_gained() -> None:
    device = Device(memory=10_000, fastest=64)
    assert largest_batch(device.encode, clock=device.clock) == 64


def test_largest() -> None:
    device = Device(memory=10_000, fastest=10_000)
    assert largest_batch(device.encode, largest=128, clock=device.clock) == 128


def test_the_cpus_allocator_refuses() -> None:
    device = Device(memory=10_000, fastest=10_000)

    def encode(size: int) -> None:
        if size > 64:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        device.encode(size)

    assert largest_batch(encode, clock=device.clock) == 64


def test_another_error_is_no_lack_of_memory() -> None:
    def broken(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        largest_batch(broken)


def test_nothing_fits() -> None:
    device = Device(memory=3, fastest=10)
    with pytest.raises(ConfigError, match="Not even 16 images fit into the memory"):
        largest_batch(device.encode, clock=itertools.count().__next__)


def test_of_a_backbone() -> None:
    assert batch_size_of(make_backbone(ColourEncoder())) >= 16
