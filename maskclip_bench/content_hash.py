"""SHA-256 of files, read once: hashes are remembered by path, size, times and inode.

The identity of a data set or of a model is the content of its files. Reading ImageNet again for
every run would take longer than the run, so each hash is kept in a small SQLite file in the user's
cache folder, under the file's absolute path together with its size, inode, device and both times
(modification and status change; the latter also moves when a file is overwritten and its
modification time is set back). A file that is changed gets a new key and is read again.

The memory is an optimization and nothing else: if it is damaged, locked, read-only or cannot be
made, hashes are computed. Every row carries a checksum of its own, so a damaged row is not used.
Several processes and threads may use it at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from maskclip_bench.errors import DataError
from maskclip_bench.regular_file import open_regular, status_of

CACHE_VARIABLE = "MASKCLIP_BENCH_CACHE"
"""Environment variable that names the cache folder."""

MEMORY_FILE = "content_hashes_v1.sqlite"

RECENT_SECONDS = 2.0
"""A file changed less than this long ago is not remembered: within the resolution of some disks'
clocks it could change again without a visible trace."""

BLOCK = 1 << 20
MAX_THREADS = 8
LOCK_SECONDS = 5.0
ROWS_PER_COMMIT = 4096
FILES_TOGETHER = 4096

NOT_DAMAGED = ("locked", "readonly", "full", "unable to open", "disk I/O", "out of memory")
"""Words of SQLite's errors that say the memory cannot be used now, not that it is damaged."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes to read in all)."""

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS hashes "
    "(path BLOB PRIMARY KEY, state TEXT NOT NULL, sha256 TEXT NOT NULL, seal TEXT NOT NULL)"
)


def cache_folder() -> Path:
    """`$MASKCLIP_BENCH_CACHE`, else `maskclip-bench` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    Raises:
        RuntimeError: No variable is set and the user has no home folder.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "maskclip-bench"


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes: 64 hex digits. Links are followed.

    Raises:
        DataError: There is no such file, it is no regular file (folder, pipe, device), it cannot
            be read, or it changes while it is read.
    """
    return file_hashes([path])[0]


def file_hashes(paths: Sequence[Path | str], progress: Progress | None = None) -> list[str]:
    """SHA-256 of each file, in the order of `paths`; files not remembered are read by threads.

    Args:
        paths: The files.
        progress: Called with (bytes done, bytes to read); not called if all are remembered.

    Raises:
        DataError: As `file_hash`, for the first such file.
    """
    files = [_File.of(path) for path in paths]
    found = _memory().lookup(files)
    unknown = list({file.path: file for file in files if file.path not in found}.values())
    counter = _Counter(sum(file.size for file in unknown), progress if unknown else None)
    try:
        if len(unknown) == 1:
            found[unknown[0].path] = _compute(unknown[0], counter)
        elif unknown:
            found.update(_compute_many(unknown, counter))
    finally:
        _memory().write()
    return [found[file.path] for file in files]


def _compute_many(files: Sequence[_File], counter: _Counter) -> dict[Path, str]:
    """Hash files in threads (hashing releases the interpreter's lock)."""
    found: dict[Path, str] = {}
    with ThreadPoolExecutor(min(MAX_THREADS, len(files))) as pool:
        for begin in range(0, len(files), FILES_TOGETHER):
            part = files[begin : begin + FILES_TOGETHER]
            jobs = [pool.submit(_compute, file, counter) for file in part]
            try:
                for file, job in zip(part, jobs, strict=True):
                    found[file.path] = job.result()
            except BaseException:
                counter.stopped = True
                pool.shutdown(cancel_futures=True)
                raise
    return found


def files_hash(paths: Sequence[Path | str], progress: Progress | None = None) -> str:
    """One SHA-256 over the contents of several files, in this order; names do not count.

    Raises:
        DataError: As `file_hash`, for the first such file.
    """
    digest = hashlib.sha256()
    for one in file_hashes(paths, progress):
        digest.update(bytes.fromhex(one))
    return digest.hexdigest()


@dataclass(frozen=True)
class _File:
    """A regular file as the disk describes it now."""

    path: Path
    size: int
    modified: float
    changed: float
    state: str

    @classmethod
    def of(cls, path: Path | str) -> _File:
        absolute = Path(path).absolute()
        return cls.from_status(absolute, status_of(absolute))

    @classmethod
    def from_status(cls, path: Path, status: os.stat_result) -> _File:
        identity = (
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
            status.st_dev,
        )
        state = " ".join(map(str, identity))
        return cls(path, status.st_size, status.st_mtime, status.st_ctime, state)

    @property
    def recent(self) -> bool:
        """Whether it may still change without a visible trace (see `RECENT_SECONDS`)."""
        now = time.time()
        return now - self.changed < RECENT_SECONDS or abs(now - self.modified) < RECENT_SECONDS

    @property
    def key(self) -> bytes:
        return os.fsencode(self.path)

    def seal(self, sha256: str) -> str:
        """Checksum of a row of the memory."""
        return hashlib.sha256(
            b"%s\0%s\0%s" % (self.key, self.state.encode(), sha256.encode())
        ).hexdigest()[:16]


@dataclass
class _Counter:
    """Adds up bytes of several threads and reports them."""

    total: int
    progress: Progress | None
    done: int = 0
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int) -> None:
        if self.progress is None:
            return
        with self.lock:
            self.done += count
            self.progress(self.done, self.total)


def _compute(file: _File, counter: _Counter) -> str:
    """Read a file and remember its hash, unless it was changed just now."""
    digest = hashlib.sha256()
    try:
        with open_regular(file.path) as opened:
            before = _File.from_status(file.path, os.fstat(opened.fileno()))
            num_read = 0
            while num_read <= file.size and (block := opened.read(BLOCK)):  # it may grow for ever
                digest.update(block)
                num_read += len(block)
                counter.add(len(block))
                if counter.stopped:
                    raise DataError(f"Stopped while {file.path} was read.")
            after = _File.from_status(file.path, os.fstat(opened.fileno()))
    except OSError as error:
        raise DataError(
            f"Cannot read {file.path} ({error.strerror}). Check its permissions and the disk."
        ) from None
    if not (before.state == after.state == file.state and num_read == file.size):
        raise DataError(
            f"{file.path} changed while it was read. Wait until it is written, and try again."
        )
    found = digest.hexdigest()
    if not file.recent:
        _memory().remember(file, found)
    return found


class _Memory:
    """The remembered hashes of one process; see the module's text."""

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / MEMORY_FILE if folder else None
        self._connection: sqlite3.Connection | None = None
        self._pending: list[tuple[bytes, str, str, str]] = []
        self._lock = threading.Lock()

    def lookup(self, files: Sequence[_File]) -> dict[Path, str]:
        """The hashes that are remembered and still hold."""
        with self._lock:
            return self._use(lambda connection: _select(connection, files)) or {}

    def remember(self, file: _File, sha256: str) -> None:
        """Add a hash; it is written with others, or by `write`."""
        with self._lock:
            self._pending.append((file.key, file.state, sha256, file.seal(sha256)))
            if len(self._pending) >= ROWS_PER_COMMIT:
                self._write()

    def write(self) -> None:
        """Write what was remembered since the last time."""
        with self._lock:
            if self._pending:
                self._write()

    def _write(self) -> None:
        rows, self._pending = self._pending, []
        self._use(lambda connection: _insert(connection, rows))

    def _use(
        self, action: Callable[[sqlite3.Connection], dict[Path, str] | None]
    ) -> dict[Path, str] | None:
        """Run `action`; a damaged memory is removed and made again, an unusable one ignored."""
        for _ in range(2):
            try:
                connection = self._connect()
                return action(connection) if connection else None
            except OSError:
                self._close()
                return None
            except sqlite3.Error as error:
                self._close()
                if any(words in str(error) for words in NOT_DAMAGED):
                    return None
                self._remove()
        return None

    def _connect(self) -> sqlite3.Connection | None:
        if self._connection is None and self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self._file.exists() and not self._file.is_file():
                return None
            connection = sqlite3.connect(
                self._file, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection = connection
            with contextlib.suppress(sqlite3.OperationalError):  # read-only: what is there is used
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(_SCHEMA)
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _remove(self) -> None:
        if self._file is not None:
            for name in (self._file.name, f"{self._file.name}-journal"):
                with contextlib.suppress(OSError):
                    self._file.with_name(name).unlink(missing_ok=True)


def _select(connection: sqlite3.Connection, files: Sequence[_File]) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for file in files:
        row = connection.execute(
            "SELECT state, sha256, seal FROM hashes WHERE path = ?", (file.key,)
        ).fetchone()
        if row is None:
            continue
        state, sha256, seal = map(str, row)
        if state == file.state and seal == file.seal(sha256):
            found[file.path] = sha256
    return found


def _insert(connection: sqlite3.Connection, rows: Sequence[tuple[bytes, str, str, str]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
    except sqlite3.Error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


_MEMORIES: dict[tuple[int, Path | None], _Memory] = {}


def _memory() -> _Memory:
    """The memory of this process (a forked child opens its own) and of the current cache folder."""
    try:
        folder: Path | None = cache_folder()
    except RuntimeError:  # no home
        folder = None
    return _MEMORIES.setdefault((os.getpid(), folder), _Memory(folder))
