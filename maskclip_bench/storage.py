"""Files that are whole or absent: write to a temporary name, fsync, rename.

Everything the benchmark relies on later (records, features, checkpoints, data sets) is written
through this module, so a process killed at any moment leaves no half file under a final name,
and two processes may work on one workspace.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from maskclip_bench.errors import StorageError, storage_error

TEMPORARY_SUFFIX = ".tmp"

DISK_REFUSALS = frozenset(
    {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EDQUOT, errno.ENOTDIR}
)
"""What the disk says when it will not take a write; any other `OSError` is a bug and passes."""


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to the disk (folders: no-op where the system refuses)."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`.

    Raises:
        StorageError: The disk refused (no space, no permission). `path` is then untouched.
    """
    temporary = path.with_name(
        f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        if error.errno not in DISK_REFUSALS:
            raise
        raise storage_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success rename it to `path`.

    An existing `path` is replaced. The caller holds a lock if two processes may write it.

    Raises:
        StorageError: The disk refused. `path` is then untouched.
    """
    temporary = path.with_name(
        f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"
    )
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old{TEMPORARY_SUFFIX}")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(path)
        fsync_path(path.parent)
    except OSError as error:
        if error.errno not in DISK_REFUSALS:
            raise
        raise storage_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


@contextlib.contextmanager
def exclusive(path: Path, *, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file `<path>.lock`, so that one process at a time makes `path`.

    Args:
        path: What is being made.
        timeout: Seconds to wait for another process; -1 waits for ever.

    Raises:
        StorageError: Another process held the lock longer than `timeout`, or the disk refused.
    """
    lock_path = path.with_name(f".{path.name}.lock")
    lock = FileLock(str(lock_path), timeout=timeout)
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise StorageError(
            f"Another process has been working on {path} for more than {timeout:.0f} s. "
            f"Wait for it; if none is running, remove {lock_path}."
        ) from error
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(folder: Path, *, older_than_seconds: float = 3600.0) -> None:
    """Delete temporary files that killed processes left in `folder` (not below it)."""
    for entry in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > older_than_seconds:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any, *, length: int = 16) -> str:
    """Hash of a JSON-like value, independent of the order of its keys: `length` hex digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
