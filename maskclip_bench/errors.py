"""What can go wrong, told to the user: every message says what came, what is allowed, what to do.

Exit codes of the command line (documented in `maskclip-bench --help`):

| code | meaning |
| --- | --- |
| 0 | everything asked for is done |
| 1 | a cell of a suite failed, or a run stopped with an error; the rest is recorded |
| 2 | the command itself is wrong: unknown name, unknown key, bad value |
| 3 | data is missing or broken, a file of the suite is broken, or what was named is not here |
| 4 | the disk refused: no space, no permission |
| 5 | an optional dependency is missing, and nothing else went wrong |
| 130 | interrupted; the same command goes on where this one stopped |
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_STORAGE = 4
EXIT_DEPENDENCY = 5
EXIT_INTERRUPTED = 130


class MaskCLIPBenchError(Exception):
    """Base of all errors that are shown to the user as one message, without a traceback."""

    exit_code = EXIT_FAILED


class ConfigError(MaskCLIPBenchError, ValueError):
    """A declaration, a recipe or an override is wrong."""

    exit_code = EXIT_USAGE


class UnknownNameError(ConfigError):
    """A name that is in no catalogue."""


class DataError(MaskCLIPBenchError):
    """Data is missing, broken, or not what its declaration says."""

    exit_code = EXIT_DATA


class CheckpointError(MaskCLIPBenchError):
    """A checkpoint is missing, broken, or of another model."""

    exit_code = EXIT_DATA


class StorageError(MaskCLIPBenchError):
    """The disk refused a write: no space, no permission, read-only."""

    exit_code = EXIT_STORAGE


class MissingDependencyError(MaskCLIPBenchError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    exit_code = EXIT_DEPENDENCY


class TrainingError(MaskCLIPBenchError):
    """Training cannot go on: too many non-finite losses, too many bad samples."""


class NonFiniteError(MaskCLIPBenchError):
    """Values are NaN or infinite where a number would be made of them.

    Attributes:
        rows: Positions of the inputs (of a batch) whose values these are, where known.
    """

    def __init__(self, message: str, *, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)


class DamagedFileError(MaskCLIPBenchError):
    """A file is not as it was written: its hash or its content differs."""

    exit_code = EXIT_DATA


class JobError(MaskCLIPBenchError):
    """A job run as a subprocess failed; the message begins with the cause, from its log."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence `Did you mean 'x'?` with a leading space, or an empty string.

    Example:
        >>> did_you_mean("zeroshot", ["zero_shot", "knn"])
        " Did you mean 'zero_shot'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException, length: int = 300) -> str:
    """What a library's error says, cut to one line; its class where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0][:length] if text else type(error).__name__


def unknown_name(kind: str, name: str, known: Iterable[str], *, remedy: str) -> UnknownNameError:
    """Build the error for a name that is in no catalogue.

    Args:
        kind: What was looked for, in the singular ("suite", "backbone").
        name: What came.
        known: What is allowed.
        remedy: What to do next, usually the command that lists what there is.
    """
    names = sorted(known)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    listing = ", ".join(names[:12]) + more
    return UnknownNameError(
        f"No {kind} {name!r}.{did_you_mean(name, names)} Known: {listing or 'none'}. {remedy}"
    )


def storage_error(error: OSError, path: object) -> StorageError:
    """Turn an `OSError` of a write into a message that names the path and the remedy."""
    if error.errno == errno.ENOSPC:
        what, remedy = "No space left on the device", "Free some space, or choose another folder"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what, remedy = "No permission to write", "Choose a folder you may write to"
    else:
        what, remedy = f"Cannot write ({error.strerror or error})", "Check the disk"
    return StorageError(
        f"{what}: {path}. {remedy} with --workspace; nothing that was already written is damaged."
    )
