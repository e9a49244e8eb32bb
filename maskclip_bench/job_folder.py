"""The contract of a job: a message that starts it, and the work folder that both sides know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from maskclip_bench import storage
from maskclip_bench.errors import DataError

Message = TypeVar("Message", bound=BaseModel)


@dataclass(frozen=True)
class JobFolder:
    """Names of the files in a job's work folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def job(self) -> Path:
        """The message."""
        return self.path / "job.json"

    @property
    def row(self) -> Path:
        """The declaration of the row whose weights are used."""
        return self.path / "backbone.yaml"

    @property
    def log(self) -> Path:
        """Everything that the job printed."""
        return self.path / "job.log"

    @property
    def progress(self) -> Path:
        """`{"stage", "done", "total"}`, twice a second."""
        return self.path / "progress.json"

    def write(self, message: BaseModel) -> Path:
        """Write the message that starts the job -> its path.

        Raises:
            StorageError: The disk refused.
        """
        storage.write_text(self.job, message.model_dump_json(indent=2) + "\n")
        return self.job

    def read_progress(self) -> tuple[str, int, int] | None:
        """Stage, done and total (at least 1) as the job wrote them last; None before it did."""
        state = storage.read_object(self.progress) or {}
        try:
            return str(state["stage"]), int(state["done"]), max(int(state["total"]), 1)
        except (ValueError, KeyError, TypeError):
            return None


def write_progress(file: Path, stage: str, done: int, total: int) -> None:
    """What `JobFolder.read_progress` reads; nothing waits for the disk.

    Raises:
        StorageError: The disk refused.
    """
    state = {"stage": stage, "done": done, "total": total}
    storage.write_json(file, state, durable=False)


def read_message(path: Path, model: type[Message]) -> Message:
    """Read a message.

    Raises:
        DataError: The file is missing or no message.
    """
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no job file: {error}. Run the suite again.") from error
