from __future__ import annotations

import errno
import json
import os
import shutil
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


def test_write_json__what_need_not_be_durable_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(storage, "fsync_path", asked.append)
    storage.write_json(tmp_path / "progress.json", {"done": 1}, durable=False)
    assert asked == []
    assert storage.read_object(tmp_path / "progress.json") == {"done": 1}
    storage.write_json(tmp_path / "record.json", {"done": 1})
    assert len(asked) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"progress.json", "record.json"}


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


def test_texts__with_half_characters(tmp_path: Path) -> None:
    """Names of files that are no UTF-8 come as such."""
    storage.write_json(tmp_path / "a.json", {"name": "caf\udce9"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"name": "caf\udce9"}
    storage.write_text(tmp_path / "a.txt", "caf\udce9")
    assert (tmp_path / "a.txt").read_text() == "caf\\udce9"
    assert storage.fingerprint("caf\udce9") != storage.fingerprint("caf\udce8")


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


KILLED_WRITER = """
import sys, time
from pathlib import Path
from maskclip_bench.storage import atomic_file, atomic_folder
with atomic_file(Path(sys.argv[1]) / "a.json") as file, atomic_folder(Path(sys.argv[1]) / "m"):
    file.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_remove_leftovers__of_a_killed_process_at_once_of_a_living_one_never(
    tmp_path: Path,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert remove_leftovers(tmp_path) == []
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(leftovers(tmp_path)) == 2
    assert len(remove_leftovers(tmp_path)) == 2
    assert list(tmp_path.iterdir()) == []


def test_remove_leftovers__of_other_machines_only_when_old_and_nothing_that_is_not_ours(
    tmp_path: Path,
) -> None:
    old, new, legacy, foreign, plain = (
        tmp_path / name
        for name in (
            ".a.0123abcd-5-0123abcd.tmp",
            ".b.0123abcd-5-0123abcd.tmp",
            f".c.{2**22 + 1}-0123abcd.tmp",
            ".theirs.tmp",
            "d.tmp",
        )
    )
    for path in (old, new, legacy, foreign, plain):
        path.touch()
    for path in (old, legacy, foreign, plain):
        os.utime(path, (0, 0))
    assert remove_leftovers(tmp_path) == [old, legacy]
    assert sorted(tmp_path.iterdir()) == [new, foreign, plain]


def test_remove_leftovers__below_and_of_a_missing_folder(tmp_path: Path) -> None:
    below = tmp_path / "x" / ".a.0123abcd-5-0123abcd.tmp"
    below.mkdir(parents=True)
    (below / "part").touch()
    os.utime(below, (0, 0))
    assert remove_leftovers(tmp_path) == []
    assert storage.leftovers(tmp_path, recursive=True) == [below]
    assert remove_leftovers(tmp_path, recursive=True) == [below]
    assert remove_leftovers(tmp_path / "nowhere") == []


def test_remove_leftovers__brings_back_a_folder_that_was_being_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("old")
    with monkeypatch.context() as patch:
        # A pid that no process has: the writer died between the two renames.
        patch.setattr(os, "getpid", lambda: 2**22 + 1)
        (tmp_path / "model").rename(storage.temporary_path(tmp_path / "model", suffix=".old.tmp"))
    assert len(remove_leftovers(tmp_path)) == 1
    assert (tmp_path / "model" / "weights").read_text() == "old"


@pytest.mark.parametrize(
    "number", [errno.EFBIG, errno.EIO, errno.ENODEV, errno.ELOOP, errno.EMFILE, errno.EDQUOT]
)
def test_atomic_file__any_refusal_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(storage, "fsync_path", refuse(number))
    with pytest.raises(StorageError, match=r"Cannot write \(.*\): .*a.txt"):
        write_text(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_atomic_file__a_limit_on_file_sizes(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from maskclip_bench.storage import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try: write_text(Path(sys.argv[1]), 'x' * 100)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True
    )
    assert result.stdout.startswith("StorageError Cannot write (File too large)"), result.stderr


def test_atomic_file__a_name_that_is_too_long_and_one_that_just_fits(tmp_path: Path) -> None:
    write_text(tmp_path / ("é" * 127), "fits")
    with pytest.raises(StorageError, match=r"Cannot write \(File name too long\)"):
        write_text(tmp_path / ("x" * 300), "does not")
    assert [entry.name for entry in tmp_path.iterdir()] == ["é" * 127]


def test_atomic_file__errors_of_a_network_pass(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), atomic_file(tmp_path / "a"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


HOSTILE_NAMES = ["plain", "two\nlines", "back\\slash", "cr\r", "  spaces ", "*star", "ü/é", "\\n"]


@pytest.fixture
def checked_folder(tmp_path: Path) -> Path:
    for number, name in enumerate(HOSTILE_NAMES):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/folder/\xff")).touch()
    storage.write_checksums(tmp_path / "folder")
    return tmp_path / "folder"


def test_checksums__are_those_of_sha256sum(checked_folder: Path) -> None:
    assert storage.check_checksums(checked_folder) == []
    if shutil.which("sha256sum"):
        subprocess.run(
            ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"],
            cwd=checked_folder,
            check=True,
        )


def test_checksums__name_what_differs_is_missing_or_extra(checked_folder: Path) -> None:
    (checked_folder / "plain").write_text("X")
    (checked_folder / "*star").unlink()
    (checked_folder / "more").touch()
    (checked_folder / ".x.0123abcd-5-0123abcd.tmp").touch()
    (checked_folder / ".x.lock").touch()
    read = []
    assert storage.check_checksums(checked_folder, progress=read.append) == [
        "*star is missing",
        "more is not listed in SHA256SUMS",
        "plain differs from its hash in SHA256SUMS",
    ]
    assert len(read) == len(HOSTILE_NAMES)


def test_checksums__a_folder_without_them_and_damaged_ones(checked_folder: Path) -> None:
    listing = checked_folder / "SHA256SUMS"
    whole = listing.read_bytes()
    listing.write_bytes(whole[:-10])
    assert storage.check_checksums(checked_folder) != []
    listing.write_bytes(whole[:64])
    problems = storage.check_checksums(checked_folder)
    assert problems is not None
    assert problems[0] == "SHA256SUMS is damaged in line 1"
    listing.unlink()
    assert storage.check_checksums(checked_folder) is None


def test_checksums__a_file_that_cannot_be_read(
    checked_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "sha256_file", refuse(errno.EACCES))
    with pytest.raises(StorageError, match=r"No permission to read: .*folder"):
        storage.check_checksums(checked_folder)
    monkeypatch.setattr(storage, "sha256_file", refuse(errno.EIO))
    with pytest.raises(StorageError, match=r"Cannot read .*folder \(Input/output error\)"):
        storage.check_checksums(checked_folder)


def test_checksums__any_single_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    content = bytes(range(64))
    path.write_bytes(content)
    storage.write_checksums(tmp_path)
    for bit in range(0, 512, 7):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert storage.check_checksums(tmp_path) == ["weights differs from its hash in SHA256SUMS"]


def test_sha256_file__known_value(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_fingerprint__independent_of_key_order() -> None:
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({}, length=8)) == 8


@pytest.mark.parametrize("content", [b"", b"[1]", b"3", b'{"a": ', b"\xff", b"[" * 100_000])
def test_read_object__what_is_none(content: bytes, tmp_path: Path) -> None:
    assert storage.read_object(tmp_path / "none") is None
    assert storage.read_object(tmp_path) is None
    path = tmp_path / "file"
    path.write_bytes(content)
    assert storage.read_object(path) is None
    storage.write_json(path, {"a": [1, None]})
    assert storage.read_object(path) == {"a": [1, None]}
