from __future__ import annotations

import errno
from pathlib import Path

import pytest

from maskclip_bench.errors import ConfigError, MissingDependencyError, StorageError
from maskclip_bench.results import picture
from maskclip_bench.results.table_files import FORMATS, format_of, write_as
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


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.md", "markdown"), ("a.TEX", "latex"), ("a.htm", "html"), ("a.pdf", "pdf"), ("a", None)],
)
def test_format_of__the_suffix(name: str, kind: str | None) -> None:
    assert format_of(Path(name)) == kind
    assert format_of(Path(name), "json") == "json"


def test_format_of__unknown() -> None:
    with pytest.raises(ConfigError, match=r"No format 'doc'\. Use one of terminal, markdown"):
        format_of(Path("a"), "doc")


@pytest.mark.parametrize("kind", FORMATS)
def test_write_as__every_format_and_nothing_else_in_the_folder(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_as(example(), path, kind)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    if kind not in ("png", "pdf"):
        text = path.read_text()
        assert "equal pairs" in text
        assert "theirs" in text


def test_write_as__a_picture_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"\(svg\) needs matplotlib: .*\[pictures\]"):
        write_as(example(), tmp_path / "a.svg", "svg")
