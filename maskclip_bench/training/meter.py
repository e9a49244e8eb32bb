"""Speed of a training run, and the share of its time spent waiting for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Meter:
    """Speed, and the share of time spent waiting for data, since the last logged step."""

    def __init__(self, step: int, total_steps: int, global_batch_size: int) -> None:
        self._total_steps = total_steps
        self._global_batch_size = global_batch_size
        self._seconds_per_step: float | None = None
        self._steps = 0
        self._waited = 0.0
        self._since = time.perf_counter()
        self._last = self._since
        self.images_per_second = 0.0
        self.wait_fraction = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside is waiting."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def step(self) -> None:
        """A step is done."""
        now = time.perf_counter()
        self._steps += 1
        took = now - self._last
        self._last = now
        before = self._seconds_per_step
        self._seconds_per_step = took if before is None else 0.95 * before + 0.05 * took
        elapsed = max(now - self._since, 1e-9)
        self.images_per_second = self._steps * self._global_batch_size / elapsed
        self.wait_fraction = min(1.0, self._waited / elapsed)

    def restart(self) -> None:
        """Begin a new window, now."""
        self._since = self._last = time.perf_counter()
        self._steps = 0
        self._waited = 0.0

    def eta_seconds(self, step: int) -> float:
        """Expected seconds to the end of the run."""
        return (self._total_steps - step) * (self._seconds_per_step or 0.0)
