from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskclip_bench import content_hash
from maskclip_bench.content_hash import (
    CACHE_VARIABLE,
    MEMORY_FILE,
    cache_folder,
    file_hash,
    file_hashes,
    files_hash,
)
from maskclip_bench.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are remembered at once, so that no test waits."""
    monkeypatch.setattr(content_hash, "RECENT_SECONDS", -1.0)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def rows(cache: Path) -> int:
    with contextlib.closing(sqlite3.connect(cache / MEMORY_FILE)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM hashes").fetchone()[0])


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    original = content_hash._compute

    def spy(file: content_hash._File, counter: content_hash._Counter) -> str:
        read.append(file.path)
        return original(file, counter)

    monkeypatch.setattr(content_hash, "_compute", spy)
    return read


@pytest.mark.parametrize("content", [b"", b"x", bytes(3 << 20)], ids=["empty", "one", "3 MiB"])
def test_file_hash__is_sha256(tmp_path: Path, content: bytes) -> None:
    assert file_hash(write(tmp_path / "file", content)) == sha(content)


def test_file_hash__remembers(
    tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    path = write(tmp_path / "file", b"first")
    read = count_reads(monkeypatch)
    assert [file_hash(path) for _ in range(3)] == [sha(b"first")] * 3
    assert read == [path]
    assert rows(cache) == 1


@pytest.mark.parametrize("how", ["in place", "in place, time set back", "replaced, time set back"])
def test_file_hash__notices_a_change_of_equal_size(tmp_path: Path, settled: None, how: str) -> None:
    path = write(tmp_path / "file", b"first")
    before = path.stat()
    file_hash(path)
    if how.startswith("replaced"):
        write(tmp_path / "new", b"other").replace(path)
    else:
        path.write_bytes(b"other")
    if how.endswith("set back"):
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_hash(path) == sha(b"other")


def test_file_hash__follows_links_to_their_new_target(tmp_path: Path, settled: None) -> None:
    link = tmp_path / "link"
    link.symlink_to(write(tmp_path / "a", b"aaaa"))
    assert file_hash(link) == sha(b"aaaa")
    link.unlink()
    link.symlink_to(write(tmp_path / "b", b"bbbb"))
    assert file_hash(link) == sha(b"bbbb")


def test_file_hash__recent_file_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "file", b"first")
    file_hash(path)
    assert not (cache / MEMORY_FILE).exists() or rows(cache) == 0


def test_recent__by_either_time_but_not_by_one_in_the_future() -> None:
    now = time.time()

    def recent(modified: float, changed: float) -> bool:
        return content_hash._File(Path("x"), 0, modified, changed, "").recent

    assert recent(now, now) and recent(now - 99, now) and recent(now, now - 99)
    assert recent(now - 99, now + 99)  # a server's clock that goes ahead
    assert not recent(now - 99, now - 99) and not recent(now + 1e6, now - 99)


def test_names__bytes_that_are_no_utf8(tmp_path: Path, settled: None) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n"))
    write(path, b"content")
    assert [file_hash(path), file_hash(path)] == [sha(b"content")] * 2


@pytest.mark.parametrize("damage", ["text", "truncated", "other table", "empty", "flipped"])
def test_damaged_memory__is_ignored_and_made_again(
    tmp_path: Path, settled: None, cache: Path, damage: str
) -> None:
    paths = [write(tmp_path / "files" / str(i), b"%d" % i) for i in range(50)]
    expected = [sha(b"%d" % i) for i in range(50)]
    file_hashes(paths)
    for open_memory in content_hash._MEMORIES.values():
        open_memory._close()
    content_hash._MEMORIES.clear()  # as a new process
    memory = cache / MEMORY_FILE
    whole = memory.read_bytes()
    if damage == "text":
        memory.write_text("no database " * 100, encoding="utf-8")
    elif damage == "truncated":
        memory.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        memory.write_bytes(b"")
    elif damage == "other table":
        memory.unlink()
        with sqlite3.connect(memory) as connection:
            connection.execute("CREATE TABLE hashes (something TEXT)")
        connection.close()
    else:
        memory.write_bytes(bytes(b ^ (i % 97 == 5) for i, b in enumerate(whole)))
    assert file_hashes(paths) == expected
    assert file_hashes(paths) == expected
    assert rows(cache) == 50


def test_damaged_row__is_not_used(tmp_path: Path, settled: None, cache: Path) -> None:
    path = write(tmp_path / "file", b"first")
    file_hash(path)
    with contextlib.closing(sqlite3.connect(cache / MEMORY_FILE)) as connection, connection:
        connection.execute("UPDATE hashes SET sha256 = ?", (sha(b"other"),))
    assert file_hash(path) == sha(b"first")


@pytest.mark.parametrize("how", ["file in the folder's place", "pipe", "locked", "read-only"])
def test_unusable_memory__hashes_are_computed(
    tmp_path: Path,
    settled: None,
    cache: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    path = write(tmp_path / "file", b"first")
    monkeypatch.setattr(content_hash, "LOCK_SECONDS", 0.01)
    if how == "file in the folder's place":
        write(cache, b"")
    elif how == "pipe":
        cache.mkdir()
        os.mkfifo(cache / MEMORY_FILE)
    elif how == "locked":
        cache.mkdir()
        other = sqlite3.connect(cache / MEMORY_FILE, isolation_level=None)
        request.addfinalizer(other.close)
        other.execute("BEGIN EXCLUSIVE")
    else:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "mkdir", refuse)
    assert [file_hash(path), file_hash(path)] == [sha(b"first")] * 2


def test_full_disk__hashes_are_computed(
    tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(content_hash, "_insert", full)
    assert file_hash(write(tmp_path / "file", b"first")) == sha(b"first")


@pytest.mark.parametrize(
    ("kind", "words"), [("pipe", "named pipe"), ("socket", "socket"), ("folder", "folder")]
)
def test_file_hash__refuses_what_is_no_regular_file(
    tmp_path: Path, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x")
    else:
        path.mkdir()
    with pytest.raises(DataError, match=f"is a {words}, and a regular file is needed"):
        file_hash(path)


def test_file_hash__device_is_refused() -> None:
    with pytest.raises(DataError, match="is a device"):
        file_hash("/dev/zero")


def test_file_hash__missing_or_dead_link(tmp_path: Path) -> None:
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("nowhere", "dead"):
        with pytest.raises(DataError, match="There is no file"):
            file_hash(tmp_path / name)
    with pytest.raises(DataError, match="Cannot read"):
        file_hash(tmp_path / "loop")


def test_file_hash__unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "file", b"first")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=r"Cannot read .*Input/output error"):
        file_hash(path)


def test_file_hash__changes_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "file", bytes(4 << 20))

    def grow(done: int, total: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with pytest.raises(DataError, match="changed while it was read"):
        files_hash([path], grow)


def test_files_hash__order_counts_and_names_do_not(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", b"1"), write(tmp_path / "b", b"2")
    expected = hashlib.sha256(bytes.fromhex(sha(b"1") + sha(b"2"))).hexdigest()
    assert files_hash([a, b]) == expected != files_hash([b, a])
    a.rename(tmp_path / "c")
    assert files_hash([tmp_path / "c", b]) == expected
    assert files_hash([]) == hashlib.sha256().hexdigest()


def test_file_hashes__repeated_paths_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", b"1")
    read = count_reads(monkeypatch)
    assert file_hashes([path, path, path]) == [sha(b"1")] * 3
    assert read == [path]


def test_progress__bytes_of_what_is_read(tmp_path: Path, settled: None) -> None:
    old = write(tmp_path / "old", bytes(100))
    file_hash(old)
    paths = [old, *(write(tmp_path / str(i), bytes(10 * i)) for i in range(1, 5))]
    calls: list[tuple[int, int]] = []
    file_hashes(paths, lambda done, total: calls.append((done, total)))
    assert [total for _, total in calls] == [100] * 4
    assert sorted(done for done, _ in calls) == [done for done, _ in calls]
    assert calls[-1] == (100, 100)
    calls.clear()
    file_hashes(paths, lambda done, total: calls.append((done, total)))
    assert calls == []


def test_many_files__one_bad_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path / str(i), b"%d" % i) for i in range(20)]
    original = os.open

    def refuse(path: object, *args: object) -> int:
        if str(path).endswith("/7"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "7"))):
        file_hashes(paths)


def test_stopped__a_long_read_ends(tmp_path: Path) -> None:
    counter = content_hash._Counter(0, None, stopped=True)
    with pytest.raises(DataError, match="Stopped while"):
        content_hash._compute(content_hash._File.of(write(tmp_path / "a", b"1")), counter)


def test_threads__share_one_memory(tmp_path: Path, settled: None, cache: Path) -> None:
    paths = [write(tmp_path / "files" / str(i), b"%d" % i) for i in range(40)]
    expected = [sha(b"%d" % i) for i in range(40)]
    barrier = threading.Barrier(8)

    def work(_: int) -> list[str]:
        barrier.wait()
        return [file_hash(path) for path in paths]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [expected] * 8
    assert rows(cache) == 40


def test_processes__share_one_memory(tmp_path: Path, cache: Path) -> None:
    paths = [write(tmp_path / "files" / str(i), b"%d" % i) for i in range(40)]
    code = (
        "import sys; from maskclip_bench import content_hash; content_hash.RECENT_SECONDS = -1.0; "
        "print(*[content_hash.file_hash(p) for p in sys.argv[1:]])"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        assert process.communicate()[0].split() == [sha(b"%d" % i) for i in range(40)]
    assert rows(cache) == 40


def test_forked_child__opens_its_own_connection(tmp_path: Path, settled: None) -> None:
    path = write(tmp_path / "a", b"1")
    file_hash(path)
    mine = content_hash._memory()
    child = os.fork()
    if child == 0:
        os._exit(0 if content_hash._memory() is not mine and file_hash(path) == sha(b"1") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_cache_folder__by_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "maskclip-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "maskclip-bench"


def test_no_home__hashes_are_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert file_hash(write(tmp_path / "a", b"1")) == sha(b"1")
