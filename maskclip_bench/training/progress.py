"""How far a run is: told to the caller, and left in `progress.json` for other processes."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from maskclip_bench import distributed, storage

PROGRESS_FILE = "progress.json"

CALLBACK_EVERY_SECONDS = 0.2
PROGRESS_FILE_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class TrainProgress:
    """The state of a run after a step.

    Attributes:
        step: Steps done.
        total_steps: Steps of the whole run.
        epoch: Passes over the data done, with fraction.
        images_per_second: Over all devices, of late.
        eta_seconds: Expected time to the end.
        data_wait_fraction: Share of the time spent waiting for data, of late.
        memory_bytes: Peak on the device, or of this process on a CPU.
        terms: Each loss term, and "loss", their sum.
        values: lr, and what the method reports (logit_scale, ema_momentum).
        num_nonfinite_steps: Steps skipped so far: a loss or the gradient was not finite.
    """

    step: int
    total_steps: int
    epoch: float = 0.0
    images_per_second: float = 0.0
    eta_seconds: float = 0.0
    data_wait_fraction: float = 0.0
    memory_bytes: int = 0
    terms: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    num_nonfinite_steps: int = 0

    @property
    def loss(self) -> float:
        """The whole loss; NaN before the first step."""
        return self.terms.get("loss", math.nan)


def write_progress(folder: Path, progress: TrainProgress) -> None:
    """Write `progress.json` atomically; values that are not finite become null.

    Raises:
        StorageError: The disk refused.
    """
    storage.write_json(folder / PROGRESS_FILE, finite(asdict(progress)))


def read_progress(folder: Path) -> TrainProgress | None:
    """What a run last wrote; None if there is nothing readable."""
    try:
        loaded = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        known = {item.name for item in fields(TrainProgress)}
        values = {key: value for key, value in loaded.items() if key in known}
        for key in ("terms", "values"):
            numbers = values.get(key, {}).items()
            values[key] = {name: math.nan if x is None else float(x) for name, x in numbers}
        return TrainProgress(**values)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def finite(value: Any) -> Any:
    """A JSON-like value with every number that is not finite replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


ProgressCallback = Callable[[TrainProgress], None]


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


class Report:
    """Tells the caller, and progress.json, not too often."""

    def __init__(self, output: Path, callback: ProgressCallback | None) -> None:
        self._output = output
        self._callback = callback
        self._told = self._written = float("-inf")

    def __call__(self, state: TrainProgress, *, force: bool) -> None:
        """Pass the state on, if the last time is long enough ago (`force`: in any case)."""
        now = time.monotonic()
        if not distributed.is_main():
            return
        if self._callback and (force or now - self._told >= CALLBACK_EVERY_SECONDS):
            self._told = now
            self._callback(state)
        if force or now - self._written >= PROGRESS_FILE_EVERY_SECONDS:
            self._written = now
            write_progress(self._output, state)
