"""Which checkpoint of a dense run to go on from: the newest one that is as it was written.

The hook `RunReport` lets `seal_new` write the SHA-256 of each checkpoint beside it
(`iter_500.pth.sha256`, in the format of `sha256sum`). A checkpoint whose hash differs, or without a
hash whose archive is broken, is set aside as `*.damaged`, and the one before it is used.
"""

from __future__ import annotations

import contextlib
import logging
import re
import zipfile
from pathlib import Path

from maskclip_bench.errors import CheckpointError
from maskclip_bench.storage import sha256_file, write_text

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"(?:iter|epoch)_(\d+)\.pth")


def seal_new(folder: Path, *, written: str | None = None) -> None:
    """Write the hash of each checkpoint that has none, and remove those of removed ones.

    Args:
        folder: Of the checkpoints.
        written: Name of the one that was just written, maybe for the second time: with
            `save_best`, mmengine writes the newest again after a validation.
    """
    for path in _numbered(folder):
        if path.name == written or not seal_of(path).is_file():
            write_text(seal_of(path), f"{sha256_file(path)}  {path.name}\n")
    for seal in folder.glob("*.pth.sha256"):
        if not seal.with_suffix("").is_file():  # mmengine removed the old checkpoint
            seal.unlink(missing_ok=True)


def seal_problem(path: Path) -> str | None:
    """What a checkpoint's hash says against it; None if nothing, or if it has no hash."""
    seal = seal_of(path)
    if not seal.is_file():
        return None
    written = seal.read_text(encoding="utf-8", errors="replace").split()
    if written and sha256_file(path) == written[0]:
        return None
    return f"is not as it was written (another SHA-256 than in {seal.name})"


def seal_of(path: Path) -> Path:
    """Where the hash of a checkpoint is."""
    return path.with_name(f"{path.name}.sha256")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that is whole, wherever the folder was moved.

    Damaged ones are set aside with a warning. None if there is none.
    """
    for path in reversed(_numbered(folder)):
        problem = _problem(path)
        if problem is None:
            return path
        logger.warning("%s %s; it is set aside, and the one before it is used", path, problem)
        with contextlib.suppress(FileNotFoundError):  # another rank was first
            path.replace(path.with_name(f"{path.name}.damaged"))
        seal_of(path).unlink(missing_ok=True)
    return None


def checkpoint_to_test(folder: Path) -> Path:
    """The last checkpoint.

    Raises:
        CheckpointError: There is none, or it was removed.
    """
    path = last_checkpoint(folder)
    if path is None:
        raise CheckpointError(
            f"{folder} has no checkpoint to test. Delete the folder to train again."
        )
    return path


def _numbered(folder: Path) -> list[Path]:
    """Checkpoints of mmengine's names, oldest first."""
    found = [
        (int(match[1]), path)
        for path in folder.glob("*.pth")
        if (match := _NUMBERED.fullmatch(path.name)) and path.is_file()
    ]
    return [path for _, path in sorted(found)]


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words after its name; None if it is whole."""
    try:
        if seal_of(path).is_file():
            return seal_problem(path)
        with zipfile.ZipFile(path) as archive:  # killed before the hash was written, or older
            broken = archive.testzip()
        return None if broken is None else f"is damaged at {broken}"
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        return f"is cut or damaged ({error})"
