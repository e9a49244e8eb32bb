"""Checkpoints: everything a run needs to go on, tensors and plain values only.

Files are whole or absent (written aside, flushed, renamed), the newest few are kept, and one that
is broken all the same is passed over for the one before it. Nothing is unpickled: files are read
with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskclip_bench import storage
from maskclip_bench.errors import CheckpointError

logger = logging.getLogger(__name__)

FORMAT = 1
PREFIX = "step_"
SUFFIX = ".pt"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps.

    The position in the data and every random stream follow from (seed, step, rank), so that the
    step is all there is to say about them.

    Attributes:
        step: Optimizer steps done.
        method: State of the method: student, heads, teacher, quantizer.
        optimizer: State of the optimizer.
        counters: Plain numbers of the run, such as steps skipped.
        recipe: The recipe, as plain values.
        world_size: Processes that trained.
    """

    step: int
    method: dict[str, Any]
    optimizer: dict[str, Any]
    counters: dict[str, int]
    recipe: dict[str, Any]
    world_size: int = 1


class CheckpointStore:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then remove the oldest beyond `keep`.

        Raises:
            StorageError: The disk refused; older checkpoints are untouched.
        """
        path = self._folder / f"{PREFIX}{checkpoint.step:08d}{SUFFIX}"
        payload = {
            "format": FORMAT,
            "step": checkpoint.step,
            "method": checkpoint.method,
            "optimizer": checkpoint.optimizer,
            "counters": checkpoint.counters,
            "recipe": checkpoint.recipe,
            "world_size": checkpoint.world_size,
        }
        with storage.atomic_file(path) as temporary:
            _write(payload, temporary)
        for old in self.paths()[: -self._keep]:
            with contextlib.suppress(OSError):
                old.unlink()
        return path

    def paths(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted(self._folder.glob(f"{PREFIX}*{SUFFIX}"))

    def latest(self) -> Checkpoint | None:
        """The newest readable checkpoint; None if there has never been one.

        Raises:
            CheckpointError: There are some, and none can be read.
        """
        paths = self.paths()
        reasons = []
        for path in reversed(paths):
            try:
                return load_checkpoint(path)
            except CheckpointError as error:
                logger.warning("%s The one before it is used.", error)
                reasons.append(path.name)
        if paths:
            raise CheckpointError(
                f"None of the checkpoints in {self._folder} can be read ({', '.join(reasons)}). "
                "Restore one from a backup, or remove the run's folder to start it again."
            )
        return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        CheckpointError: There is no such file, it is broken, or it is of another format.
    """
    if not path.is_file():
        raise CheckpointError(
            f"No checkpoint {path}. Give a file checkpoints/step_*.pt of a run, or its folder."
        )
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each have their own
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(f"The checkpoint {path} cannot be read: {reason}.") from error
    if not isinstance(payload, Mapping) or payload.get("format") != FORMAT:
        found = payload.get("format") if isinstance(payload, Mapping) else type(payload).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of this version (format {found!r}, expected {FORMAT}). "
            "Use the version of maskclip-bench that wrote it."
        )
    return Checkpoint(
        step=payload["step"],
        method=payload["method"],
        optimizer=payload["optimizer"],
        counters=payload["counters"],
        recipe=payload["recipe"],
        world_size=payload["world_size"],
    )


def restore_module(module: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load a state into a module; names and shapes must be the same.

    Raises:
        CheckpointError: The state is of another model.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"The state in {where} is of another model than the recipe builds: {error}"
        ) from error


def _write(payload: dict[str, Any], path: Path) -> None:
    """`torch.save`, with the disk's refusal as the `OSError` it was."""
    with path.open("wb") as file:
        recording: Any = _RecordingFile(file)
        try:
            torch.save(payload, recording)
        except RuntimeError:  # torch's archive writer hides the error of the file beneath
            if recording.error is not None:
                raise recording.error from None
            raise


class _RecordingFile:
    """A file that remembers the first error of a write."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return int(self._file.write(data))
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()
