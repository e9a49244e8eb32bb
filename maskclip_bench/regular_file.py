"""Open files, and nothing else: a named pipe or a device would block or never end."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from maskclip_bench.errors import DataError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path | str) -> io.BufferedReader:
    """Open a regular file for reading bytes; links are followed. The caller closes it.

    Raises:
        DataError: There is no such file, it is no regular file, or it cannot be read.
    """
    status_of(path)  # opening a device may already act on it
    try:
        # A pipe put in the file's place since then would block without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        require_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def status_of(path: Path | str) -> os.stat_result:
    """The status of a regular file.

    Raises:
        DataError: As `open_regular`.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - a str stays one
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:  # a NUL in the name
        raise DataError(f"{str(path)!r} can be no file name ({error}). Check the path.") from None
    require_regular(path, status)
    return status


def require_regular(path: Path | str, status: os.stat_result) -> None:
    """Refuse what is no regular file.

    Raises:
        DataError: It is a folder, pipe, socket or device.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise DataError(
            f"{path} is {kind}, and a regular file is needed here. Remove it, or name another file."
        )


def _unreadable(path: Path | str, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"There is no file {path}. Check the path, or copy the file there again.")
    return DataError(
        f"Cannot read {path} ({error.strerror or error}). Check its permissions and the disk."
    )
