"""Progress: what long work tells its caller, and what a training run leaves in `progress.json`.

* `Progress` is a function of (stage, done, total): protocols, features and drawing call it.
* `Unit` and `Listener` are for a run of many pieces: a suite tells of each when it begins and ends.
* `Snapshot` is the state of a training run; `Report` passes it on.
* `Throttle` keeps all of them from telling too often.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from maskclip_bench import storage

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"

CALLBACK_EVERY_SECONDS = 0.2
PROGRESS_FILE_EVERY_SECONDS = 1.0

Progress = Callable[[str, int, int], None]
"""(stage, done, total): `done` of `total` pieces of a stage are done."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Does nothing."""


class Throttle:
    """Answers whether enough time has passed since it last answered yes."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = float("-inf")

    def due(self, *, force: bool = False) -> bool:
        """True if the last yes was `seconds` ago, or if `force`."""
        now = time.monotonic()
        if not force and now - self._last < self._seconds:
            return False
        self._last = now
        return True


def throttled(progress: Progress, *, seconds: float) -> Progress:
    """The same function, called at most every `seconds`, and always when a stage is complete."""
    throttle = Throttle(seconds)

    def tell(stage: str, done: int, total: int) -> None:
        if throttle.due(force=done >= total):
            progress(stage, done, total)

    return tell


# A run of many pieces.


@dataclass(frozen=True)
class Unit:
    """A piece of work that gets a line in the display.

    Attributes:
        key: Its identity.
        label: Its name for people.
        expected_seconds: Rough time it takes; weighs the pieces of a run against each other.
    """

    key: str
    label: str
    expected_seconds: float


class Listener(Protocol):
    """What a run of many units tells (the command line shows it)."""

    def planned(self, units: list[Unit]) -> None:
        """All that the run will do."""

    def started(self, unit: Unit) -> None:
        """A unit begins."""

    def advanced(self, unit: Unit, stage: str, done: float, total: float) -> None:
        """A unit is `done` of `total` through its `stage`."""

    def finished(self, unit: Unit, *, ok: bool, note: str) -> None:
        """A unit ended; `note` is its score or what went wrong."""


# A training run.


@dataclass(frozen=True)
class Snapshot:
    """The state of a training run after a step.

    Attributes:
        step: Steps done.
        total_steps: Steps of the whole run.
        epoch: Passes over the data done, with fraction.
        images_per_second: Over all devices, since the last logged step.
        eta_seconds: Expected time to the end.
        data_wait_fraction: Share of the time spent waiting for data, since the last logged step.
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


SnapshotCallback = Callable[[Snapshot], None]


def write_progress(folder: Path, snapshot: Snapshot) -> None:
    """Write `progress.json` atomically; values that are not finite become null.

    Raises:
        StorageError: The disk refused.
    """
    storage.write_json(folder / PROGRESS_FILE, finite(asdict(snapshot)))


def read_progress(folder: Path) -> Snapshot | None:
    """What a run last wrote; None if there is nothing readable."""
    try:
        loaded = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        return Snapshot(
            step=int(loaded["step"]),
            total_steps=int(loaded["total_steps"]),
            epoch=_number(loaded.get("epoch")),
            images_per_second=_number(loaded.get("images_per_second")),
            eta_seconds=_number(loaded.get("eta_seconds")),
            data_wait_fraction=_number(loaded.get("data_wait_fraction")),
            memory_bytes=int(loaded.get("memory_bytes", 0)),
            terms={str(name): _number(value) for name, value in loaded.get("terms", {}).items()},
            values={str(name): _number(value) for name, value in loaded.get("values", {}).items()},
            num_nonfinite_steps=int(loaded.get("num_nonfinite_steps", 0)),
        )
    except (OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError):
        return None
    except RecursionError:  # a file of brackets
        return None


def _number(value: Any) -> float:
    """A number from JSON, where null stands for one that is not finite."""
    return math.nan if value is None else float(value)


def finite(value: Any) -> Any:
    """A JSON-like value with every number that is not finite replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Report:
    """Passes snapshots on to a callback and to progress.json, a few times a second at most."""

    def __init__(self, folder: Path | None, callback: SnapshotCallback | None) -> None:
        """Pass nothing on yet.

        Args:
            folder: Where progress.json is kept; None keeps none (all ranks but the first).
            callback: Told of the state at most every `CALLBACK_EVERY_SECONDS`.
        """
        self._folder = folder
        self._callback = callback
        self._callback_throttle = Throttle(CALLBACK_EVERY_SECONDS)
        self._file_throttle = Throttle(PROGRESS_FILE_EVERY_SECONDS)

    def __call__(self, snapshot: Snapshot, *, force: bool) -> None:
        """Pass a snapshot on, if the last was long enough ago (`force`: in any case).

        Raises:
            StorageError: The disk refused.
        """
        if self._callback is not None and self._callback_throttle.due(force=force):
            try:
                self._callback(snapshot)
            except OSError as error:  # the terminal is gone, or the pipe's other end
                logger.debug("Progress is no longer shown: %s", error)
                self._callback = None
        if self._folder is not None and self._file_throttle.due(force=force):
            write_progress(self._folder, snapshot)
