"""Files that are whole or absent: write to a temporary name, fsync, rename.

Everything the benchmark relies on later (records, features, checkpoints, data sets) is written
through this module, so a process killed at any moment leaves no half file under a final name,
and two processes may work on one workspace. What a killed process leaves under a temporary name
is removed by `remove_leftovers`; what a folder held when it was written stands in its SHA256SUMS.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from maskclip_bench.errors import StorageError, storage_error

TEMPORARY_SUFFIX = ".tmp"

CHECKSUMS = "SHA256SUMS"
"""Name of the file of checksums of a folder; `sha256sum --check SHA256SUMS` reads it too."""

LEFTOVER_SECONDS = 24 * 3600.0
"""Age at which a temporary file is removed although its process cannot be asked for."""

_OWNER = re.compile(
    r"\.(?P<name>.+)\.(?:(?P<host>[0-9a-f]{8})-)?(?P<pid>\d+)-[0-9a-f]{8}(?P<old>\.old)?"
    + re.escape(TEMPORARY_SUFFIX),
    re.DOTALL,
)
_LONGEST_NAME = 150
"""Bytes of a file's own name in the name of its temporary file; a name may have 255."""


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to the disk (no-op where the file system has no such call).

    Raises:
        OSError: The disk failed to take what was written.
    """
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`.

    Args:
        path: What is written.
        durable: Whether it is to outlive a failure of the machine; without it nothing waits for
            the disk, and only what dies with the process is safe.

    Raises:
        StorageError: The disk refused (no space, no permission, a limit on file sizes, a name
            that is too long...). `path` is then untouched.
    """
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            fsync_path(temporary)
        temporary.replace(path)
        if durable:
            fsync_path(path.parent)
    except OSError as error:
        if not _is_refusal(error, path, temporary):
            raise
        raise storage_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success rename it to `path`.

    An existing `path` is replaced. The caller holds a lock if two processes may write it. A
    process killed between the two renames leaves the old folder under a temporary name, from
    which `remove_leftovers` brings it back.

    Raises:
        StorageError: The disk refused. `path` is then untouched.
    """
    temporary = temporary_path(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        replace_folder(temporary, path)
    except OSError as error:
        if not _is_refusal(error, path, temporary):
            raise
        raise storage_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, path: Path) -> None:
    """Give a complete folder its name; an existing `path` is replaced.

    Args:
        temporary: Of `temporary_path(path)`.
        path: Its name.

    Raises:
        OSError: The disk refused.
    """
    if path.exists():
        old = temporary_path(path, suffix=f".old{TEMPORARY_SUFFIX}")
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(path)
    fsync_path(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, so that none of its name is ever there in part; what is left, is left."""
    with contextlib.suppress(OSError):
        temporary = temporary_path(path)
        path.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_path(path: Path, *, suffix: str = TEMPORARY_SUFFIX) -> Path:
    """`.{name}.{host}-{pid}-{random}{suffix}` beside `path`; its owner can be read from it."""
    name = path.name
    if suffix == TEMPORARY_SUFFIX:
        name = os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])
    owner = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{name}.{owner}{suffix}")


@functools.lru_cache(maxsize=1)
def _host() -> str:
    """Eight hex digits for this machine and its namespace of process ids."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    return hashlib.sha256(f"{platform.node()}/{namespace}".encode()).hexdigest()[:8]


def _is_refusal(error: OSError, path: Path, temporary: Path) -> bool:
    """Whether the error is the disk's about `path`, not one of something the body did beside it.

    A failed `write` names no file; a failed `open` or `rename` names the one it was asked for.
    """
    if error.errno is None or isinstance(error, (ConnectionError, TimeoutError)):
        return False
    if error.filename is None:
        return True
    if not isinstance(error.filename, (str, bytes, os.PathLike)):
        return False
    named = Path(os.fsdecode(error.filename))
    return named in (path, *path.parents, temporary) or temporary in named.parents


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write `text` (UTF-8) to `path` by `atomic_file`; half characters become escapes."""
    with atomic_file(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as indented JSON by `atomic_file`; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", durable=durable)


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if it is not there, cannot be read, or holds another thing.

    For what can be made again. What must be there is read with an error of its own.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last: a file of brackets
        return None
    return found if isinstance(found, dict) else None


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


def remove_leftovers(
    folder: Path, *, recursive: bool = False, older_than_seconds: float = LEFTOVER_SECONDS
) -> list[Path]:
    """Delete the temporary files and folders that dead processes left in `folder`.

    Those of a process of this machine are deleted as soon as it is dead; those of another machine
    once they are old (names of earlier versions, which tell no machine: after an hour). A folder
    that was being replaced when its process died is brought back. What cannot be deleted is left.

    Args:
        folder: Where a store lies; nothing happens if it does not exist.
        recursive: Look below it, too (links are not followed).
        older_than_seconds: Age from which the owner no longer matters.

    Returns:
        What was removed or brought back.
    """
    removed = []
    for entry in _temporary_entries(folder, recursive=recursive):
        if not is_leftover(entry, older_than_seconds=older_than_seconds):
            continue
        with contextlib.suppress(OSError):
            match = _OWNER.fullmatch(entry.name)
            if match and match["old"] and not entry.with_name(match["name"]).exists():
                entry.rename(entry.with_name(match["name"]))
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            removed.append(entry)
    return removed


def leftovers(folder: Path, *, recursive: bool = False) -> list[Path]:
    """What `remove_leftovers` would remove."""
    return [path for path in _temporary_entries(folder, recursive=recursive) if is_leftover(path)]


def is_leftover(entry: Path, *, older_than_seconds: float = LEFTOVER_SECONDS) -> bool:
    """Whether nobody is still writing the temporary file or folder `entry`."""
    match = _OWNER.fullmatch(entry.name)
    if match is None:
        return False
    if match["host"] in (None, _host()) and not _is_alive(int(match["pid"])):
        older_than_seconds = min(older_than_seconds, 3600.0 if match["host"] is None else -1.0)
    try:
        return older_than_seconds < 0 or time.time() - entry.lstat().st_mtime > older_than_seconds
    except OSError:
        return False


def _temporary_entries(folder: Path, *, recursive: bool) -> list[Path]:
    """Sorted entries of `folder` whose names are of our making; other `.tmp` files are not ours."""
    found = []
    for root, folders, files in os.walk(folder):
        ours = [name for name in (*folders, *files) if _OWNER.fullmatch(name)]
        found += [Path(root, name) for name in ours]
        folders[:] = [name for name in folders if name not in ours] if recursive else []
    return sorted(found)


def _is_alive(pid: int) -> bool:
    """Whether a process of this id runs on this machine (someone else's counts)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def set_aside(path: Path) -> Path | None:
    """Rename what is damaged to `<name>.damaged-N`, so that it can be looked at later.

    Returns:
        Its new name; None where the folder cannot be written to.
    """
    number = 1
    while os.path.lexists(target := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    try:
        path.rename(target)
    except OSError:
        return None
    return target


def write_checksums(folder: Path) -> Path:
    """Write `SHA256SUMS` of all files below `folder`, in the format of `sha256sum`.

    Call it when the folder is complete (inside `atomic_folder`, as its last step).

    Returns:
        The file.

    Raises:
        StorageError: The disk refused.
    """
    lines = []
    for name, path in sorted(_files_below(folder).items()):
        escaped = _escaped(name)
        mark = b"\\" if escaped != name else b""
        lines.append(mark + sha256_file(path).encode() + b"  " + escaped + b"\n")
    target = folder / CHECKSUMS
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"".join(lines))
    return target


def check_checksums(
    folder: Path, *, progress: Callable[[Path], None] = lambda path: None
) -> list[str] | None:
    """Compare the files below `folder` with its `SHA256SUMS`.

    Args:
        folder: Written by `write_checksums`.
        progress: Told each file that was read.

    Returns:
        One line a file that differs, is missing or is not listed, empty if all is as it was
        written; None if the folder has no `SHA256SUMS` (it was made before there were any).

    Raises:
        StorageError: A file cannot be read.
    """
    listing = folder / CHECKSUMS
    try:
        if not listing.is_file():
            return None
        expected, damaged = _parse_checksums(listing.read_bytes())
        found = _files_below(folder)
        problems = [f"{CHECKSUMS} is damaged in line {line}" for line in damaged]
        for name in sorted(expected.keys() | found.keys()):
            shown = os.fsdecode(name)
            if name not in found:
                problems.append(f"{shown} is missing")
            elif name not in expected:
                problems.append(f"{shown} is not listed in {CHECKSUMS}")
            else:
                if sha256_file(found[name]) != expected[name]:
                    problems.append(f"{shown} differs from its hash in {CHECKSUMS}")
                progress(found[name])
    except OSError as error:
        raise read_error(error, folder) from error
    return problems


def _files_below(folder: Path) -> dict[bytes, Path]:
    """Files by their name below `folder` (bytes, `/` between folders), without our own.

    Left out: SHA256SUMS, lock files, temporary files. A linked folder is not entered.
    """
    files = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_own(name)]
        for name in names:
            path = Path(root, name)
            relative = os.fsencode(path.relative_to(folder).as_posix())
            if not _is_own(name) and relative != CHECKSUMS.encode():
                files[relative] = path
    return files


def _is_own(name: str) -> bool:
    return name.startswith(".") and name.endswith((TEMPORARY_SUFFIX, ".lock"))


def _parse_checksums(content: bytes) -> tuple[dict[bytes, str], list[int]]:
    """Name -> hex digest, and the numbers of the lines that are none."""
    hashes, damaged = {}, []
    for number, line in enumerate(content.split(b"\n"), start=1):
        match = re.fullmatch(rb"(\\?)([0-9a-f]{64}) [ *](.+)", line)
        if match:
            name = _unescaped(match[3]) if match[1] else match[3]
            hashes[name] = match[2].decode()
        elif line:
            damaged.append(number)
    if content and not content.endswith(b"\n"):
        damaged.append(number)
    return hashes, sorted(set(damaged))


def _escaped(name: bytes) -> bytes:
    return name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")


def _unescaped(name: bytes) -> bytes:
    plain = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}
    return re.sub(rb"\\[\\nr]", lambda match: plain[match[0]], name)


def read_error(error: OSError, path: object) -> StorageError:
    """Turn an `OSError` of a read into a message that names the file and the remedy."""
    what = error.strerror or str(error) or type(error).__name__
    named = path if error.filename is None else error.filename
    remedy = "Check its owner and mode (ls -l), or the disk, and run the command again."
    if isinstance(error, PermissionError):
        return StorageError(f"No permission to read: {named}. {remedy}")
    return StorageError(f"Cannot read {named} ({what}). {remedy}")


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
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:length]
