from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskclip_bench.data.yfcc import archive_and_member, read_metadata
from maskclip_bench.errors import DataError

ROWS = [(7, "a title", "ünïcode"), (99_999_999, "", "")]


def write(path: Path, value: Any, *, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_builtins__are_read(tmp_path: Path, protocol: int) -> None:
    assert read_metadata(write(tmp_path / "m.pkl", ROWS, protocol=protocol)) == ROWS


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_payload__is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path / "m.pkl", [*ROWS, Payload(marker)])
    with pytest.raises(DataError, match=r"asks for (posix|nt)\.system.*was not loaded"):
        read_metadata(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
        b"(S'true'\nios\nsystem\n.",
    ],
)
def test_handwritten_payloads__are_refused(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "m.pkl").write_bytes(code)
    with pytest.raises(DataError, match="asks for"):
        read_metadata(tmp_path / "m.pkl")


@pytest.mark.parametrize("value", [OrderedDict(a=1), np.array([1]), Path("x"), complex(1, 2)])
def test_classes__are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match="asks for"):
        read_metadata(write(tmp_path / "m.pkl", [value]))


def test_persistent_id__is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(b"Pfile\n.")
    with pytest.raises(DataError, match="an object outside itself"):
        read_metadata(tmp_path / "m.pkl")


def test_missing_and_cut_off__say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file .*m\.pkl"):
        read_metadata(tmp_path / "m.pkl")
    path = write(tmp_path / "m.pkl", ROWS)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="no readable pickle"):
        read_metadata(path)


@pytest.mark.parametrize(
    "row", [(1, "a"), ("1", "a", "b"), (1, "a", None), (-1, "a", "b"), (10**8, "a", "b"), "abc"]
)
def test_other_rows__are_refused(tmp_path: Path, row: Any) -> None:
    with pytest.raises(DataError, match=r"Row 2 of .* should be tuples"):
        read_metadata(write(tmp_path / "m.pkl", [*ROWS, row]))


def test_not_a_list__is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a dict, and a list of rows is needed"):
        read_metadata(write(tmp_path / "m.pkl", {}))


def test_archive_and_member__eight_digits() -> None:
    assert archive_and_member(5) == ("images/00/000.zip", "005.jpg")
    assert archive_and_member(98_765_432, images="x") == ("x/98/765.zip", "432.jpg")


def test_pipe__is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.pkl")
    with pytest.raises(DataError, match="named pipe"):
        read_metadata(tmp_path / "m.pkl")


def test_row_that_prints_as_gigabytes__is_named_shortly(tmp_path: Path) -> None:
    nested: object = ["x"]
    for _ in range(60):
        nested = [nested, nested]
    (tmp_path / "m.pkl").write_bytes(pickle.dumps([nested]))
    with pytest.raises(DataError, match=r"Row 0 of .*m\.pkl is .{1,300}; rows should be"):
        read_metadata(tmp_path / "m.pkl")
