"""Random draws that are the same on every Python version and for every number of processes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from maskclip_bench.runtime import derive_seed

T = TypeVar("T")


class Draws:
    """A stream of draws for one purpose, e.g. `Draws(0, "scene", "train", 17)`.

    Everything is made of `random.Random.random`, the one method whose sequence Python promises to
    keep for a given seed.
    """

    def __init__(self, seed: int, *purpose: object) -> None:
        self._random = random.Random(derive_seed(seed, *purpose)).random

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random()

    def log_uniform(self, low: float, high: float) -> float:
        """A number in [low, high), uniform in its logarithm."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, stop: int) -> int:
        """An integer in [0, stop)."""
        return int(self._random() * stop)

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return self._random() < probability

    def choice(self, values: Sequence[T]) -> T:
        """One of `values`."""
        return values[self.integer(len(values))]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, drawn in proportion to `weights`."""
        point = self._random() * sum(weights)
        for index, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return index
        return len(weights) - 1

    def sample(self, values: Sequence[T], count: int) -> list[T]:
        """`count` different ones of `values`, in random order."""
        pool = list(values)
        return [pool.pop(self.integer(len(pool))) for _ in range(count)]
