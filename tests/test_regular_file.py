from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from maskclip_bench import regular_file
from maskclip_bench.errors import DataError
from maskclip_bench.regular_file import open_regular, status_of


def test_open_regular__reads_bytes_and_follows_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0bytes\r\n")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"\0bytes\r\n"
    assert status_of(str(tmp_path / "a")).st_size == 8


def test_open_regular__refuses_pipe_folder_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path / "pipe", "named pipe"),
        (tmp_path, "folder"),
        ("/dev/zero", "device"),
    ):
        with pytest.raises(DataError, match=f"is a {kind}, and a regular file is needed"):
            open_regular(path)


def test_open_regular__pipe_put_in_place_after_the_look_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "x")
    monkeypatch.setattr(regular_file, "status_of", lambda path: None)
    with pytest.raises(DataError, match="named pipe"):
        open_regular(tmp_path / "x")


def test_open_regular__missing_looping_impossible(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="There is no file"):
        open_regular(tmp_path / "nothing")
    with pytest.raises(DataError, match="Cannot read"):
        open_regular(tmp_path / "loop")
    with pytest.raises(DataError, match="can be no file name"):
        open_regular("a\0b")


def test_open_regular__unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=r"Cannot read .*Permission denied"):
        open_regular(tmp_path / "a")
