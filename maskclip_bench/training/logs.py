"""Where a run's numbers go: `log.jsonl`, TensorBoard, and Weights & Biases if asked."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from maskclip_bench import storage
from maskclip_bench.errors import MissingDependencyError, storage_error
from maskclip_bench.extras import install_command
from maskclip_bench.progress import finite

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"


class RunLog:
    """Writes each logged step to every destination; a context manager.

    A resumed run first drops the lines after the step it goes on from, so that the log of a run
    that was interrupted reads like that of one that was not.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        tensorboard: bool = True,
        wandb_project: str | None = None,
        name: str = "",
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the destinations.

        Raises:
            MissingDependencyError: Weights & Biases is asked for and not installed.
            StorageError: The disk refused.
        """
        self._path = folder / LOG_FILE
        self._wandb = _start_wandb(wandb_project, folder, name, recipe) if wandb_project else None
        try:
            _drop_lines_after(self._path, start_step)
            self._tensorboard = _start_tensorboard(folder, start_step) if tensorboard else None
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise storage_error(error, error.filename or folder) from error

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for destination in (self._file, self._tensorboard):
            if destination is not None:
                with contextlib.suppress(OSError):  # each line was flushed when it was written
                    destination.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of a step; one that is not finite is null in `log.jsonl`.

        Raises:
            StorageError: The disk refused.
        """
        line = json.dumps({"step": step, **finite(dict(numbers))}, allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
            if self._tensorboard is not None:
                for name, value in numbers.items():
                    self._tensorboard.add_scalar(name, value, step)
        except OSError as error:
            raise storage_error(error, error.filename or self._path) from error
        if self._wandb is not None:
            self._wandb.log(dict(numbers), step=step)


class NoLog:
    """Stands in for `RunLog` on ranks that do not log."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Does nothing."""


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `log.jsonl`; what is no line of a log (half written, damaged) is not.

    Raises:
        StorageError: The file cannot be read.
    """
    path = folder / LOG_FILE
    if not path.is_file():
        return []
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise storage.read_error(error, path) from error
    return [line for text in content.split("\n") if (line := _parsed(text)) is not None]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_line = isinstance(line, dict) and type(line.get("step")) is int
    return line if is_line else None


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = [line for line in read_log(path.parent) if line["step"] <= step]
    storage.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _start_tensorboard(folder: Path, start_step: int) -> Any:
    """A writer of TensorBoard's events; None, with a word, where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info(
            "Without TensorBoard, the run is logged to %s only. To have both: %s",
            folder / LOG_FILE,
            install_command("tensorboard"),
        )
        return None

    return SummaryWriter(
        str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None
    )


def _start_wandb(project: str, folder: Path, name: str, recipe: Mapping[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError:
        raise MissingDependencyError(
            "log.wandb_project asks for Weights & Biases, which is not installed. "
            "pip install wandb, or set log.wandb_project=null."
        ) from None
    return wandb.init(
        project=project,
        dir=str(folder),
        name=name or None,
        id=storage.fingerprint([project, str(folder.absolute())]),
        resume="allow",
        config=dict(recipe or {}),
    )
