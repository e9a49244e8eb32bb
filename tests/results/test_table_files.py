from __future__ import annotations

import errno
from pathlib import Path

import pytest

from maskclip_bench.errors import StorageError
from maskclip_bench.results import picture
from maskclip_bench.results.tables import (
    Table,
    write_table,
)
from tests.results.test_rendering import example


def test_write_table__three_files(tmp_path: Path) -> None:
    files = write_table(example(), tmp_path / "tables", "demo")
    assert [file.name for file in files] == ["demo.md", "demo.csv", "demo.png"]
    assert all(file.stat().st_size > 0 for file in files)
    assert len(list((tmp_path / "tables").iterdir())) == 3


def test_write_table__no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: Table, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(picture, "to_png", full)
    with pytest.raises(StorageError, match=r"No space left on the device: .*demo\.png"):
        write_table(example(), tmp_path, "demo")
    assert not (tmp_path / "demo.png").exists()


def test_write_table__the_same_again_changes_nothing(tmp_path: Path) -> None:
    files = write_table(example(), tmp_path, "demo")
    before = [file.stat().st_mtime_ns for file in files]
    write_table(example(), tmp_path, "demo")
    assert [file.stat().st_mtime_ns for file in files] == before


def test_write_table__what_stands_there_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(example(), tmp_path, "demo")

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StorageError, match=r"No permission to read: .*demo\.md"):
        write_table(example(), tmp_path, "demo")


def test_write_table__without_matplotlib_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level("INFO"):
        files = write_table(example(), tmp_path, "demo")
    assert [file.name for file in files] == ["demo.md", "demo.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.csv", "demo.md"]
    assert "maskclip-bench[pictures]" in caplog.text
