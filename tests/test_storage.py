from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskclip_bench import storage
from maskclip_bench.errors import StorageError
from maskclip_bench.storage import (
    TEMPORARY_SUFFIX,
    atomic_file,
    atomic_folder,
    exclusive,
    fingerprint,
    remove_leftovers,
    sha256_file,
    write_json,
    write_text,
)


def refuse(number: int) -> object:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(f".*{TEMPORARY_SUFFIX}"))


def test_atomic_file__makes_parents_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


def test_atomic_file__an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="boom"), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("boom")
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "No space left on the device"), (errno.EACCES, "No permission to write")],
)
def test_atomic_file__the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(storage, "fsync_path", refuse(number))
    with pytest.raises(StorageError, match=f"{message}: .*a.txt"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_atomic_file__other_errors_of_the_system_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.txt"):
        Path("does-not-exist").read_text()


def test_atomic_file__no_permission_on_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", refuse(errno.EACCES))
    with pytest.raises(StorageError, match="No permission to write"):
        write_text(tmp_path / "new" / "a.txt", "x")


def test_atomic_folder__replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("one", "two"):
        with atomic_folder(path) as temporary:
            (temporary / name).write_text(name)
    assert [entry.name for entry in path.iterdir()] == ["two"]
    assert leftovers(tmp_path) == []


def test_atomic_folder__an_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "one").touch()
    with pytest.raises(RuntimeError, match="boom"), atomic_folder(path) as temporary:
        (temporary / "two").touch()
        raise RuntimeError("boom")
    assert [entry.name for entry in path.iterdir()] == ["one"]
    assert leftovers(tmp_path) == []


def test_atomic_folder__no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(StorageError, match="No space left"),
        atomic_folder(tmp_path / "folder") as temporary,
    ):
        (temporary / "one").touch()
        monkeypatch.setattr(Path, "rename", refuse(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from maskclip_bench.storage import atomic_file
path = Path(sys.argv[1])
number = 0
while True:
    number += 1
    with atomic_file(path) as temporary:
        with temporary.open("w") as file:
            for _ in range(2000):
                file.write(f"{number}\\n")
"""


def test_atomic_file__killed_at_random_moments_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for delay in (0.0, 0.003, 0.011, 0.017, 0.029):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        process.wait()
        lines = path.read_text().splitlines()
        assert len(lines) == 2000
        assert len(set(lines)) == 1


def test_write_json__refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    write_json(tmp_path / "a.json", {"ä": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": [1, 2]}


HOLDER = """
import sys, time
from pathlib import Path
from maskclip_bench.storage import exclusive
with exclusive(Path(sys.argv[1])):
    Path(sys.argv[1]).touch()
    time.sleep(60)
"""


def test_exclusive__one_process_at_a_time_and_free_after_kill(tmp_path: Path) -> None:
    path = tmp_path / "thing"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)])
    try:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        expected = r"Another process has been working on .*thing for more than 0 s.*\.thing\.lock"
        with pytest.raises(StorageError, match=expected), exclusive(path, timeout=0.05):
            pass
    finally:
        process.kill()
        process.wait()
    with exclusive(path, timeout=5):
        pass


def test_exclusive__no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", refuse(errno.EROFS))
    with pytest.raises(StorageError, match="No permission to write"), exclusive(tmp_path / "a/b"):
        pass


def test_remove_leftovers__only_old_ones(tmp_path: Path) -> None:
    old, new, kept = (tmp_path / name for name in (".a.tmp", ".b.tmp", "c.tmp"))
    folder = tmp_path / ".d.tmp"
    folder.mkdir()
    (folder / "x").touch()
    for path in (old, new, kept):
        path.touch()
    for path in (old, kept, folder):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".b.tmp", "c.tmp"]


def test_sha256_file__known_value(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_fingerprint__independent_of_key_order() -> None:
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({}, length=8)) == 8
