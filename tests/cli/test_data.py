"""`maskclip-bench data convert`."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow.parquet
import pytest

from maskclip_bench.cli.app import run


def command(*arguments: object) -> int:
    """Run the command line in this process -> its exit code."""
    with pytest.raises(SystemExit) as ended:
        run([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_convert__metadata_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(1234567, "a title", "words"), (8, "", "\ud800")]
    (tmp_path / "yfcc15m.pkl").write_bytes(pickle.dumps(rows))
    table = tmp_path / "pairs.parquet"
    arguments = ("data", "convert", "yfcc15m", tmp_path / "yfcc15m.pkl", table, "--images", "zips")
    assert command(*arguments) == 0
    assert "Wrote 2 rows to" in capsys.readouterr().out
    assert pyarrow.parquet.read_table(table).to_pylist() == [
        {
            "archive": "zips/01/234.zip",
            "member": "567.jpg",
            "title": "a title",
            "description": "words",
        },
        {"archive": "zips/00/000.zip", "member": "008.jpg", "title": "", "description": "?"},
    ]


def test_convert__bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "absent.pkl"
    assert command("data", "convert", "yfcc15n", missing, tmp_path / "t.parquet") == 2
    assert "No conversion 'yfcc15n'. Did you mean 'yfcc15m'?" in capsys.readouterr().err
    assert command("data", "convert", "yfcc15m", missing, tmp_path / "t.parquet") == 3
    error = capsys.readouterr().err
    assert "absent.pkl" in error
    assert "Traceback" not in error
    assert not (tmp_path / "t.parquet").exists()
