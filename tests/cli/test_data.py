"""`maskclip-bench data convert`."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

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


def bird_catalogue(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(("owl", "bat")):
            path = tmp_path / f"data/birds/{split}/{name}/{split}.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (9, 9), (50 * number, 10 * len(split), 0)).save(path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/birds.yaml").write_text(
        "display_name: Birds\nworld: real\nreader: {kind: image_folder, root: birds}\n"
        "splits: {train: train, test: test}\ncounts: {test: 2}\n"
        "protocols: {knn: {}}\nobtain: Draw them.\n"
    )


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    bird_catalogue(tmp_path)
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", str(tmp_path))
    monkeypatch.setenv("MASKCLIP_BENCH_DATA", str(tmp_path / "data"))
    return tmp_path


def test_check__exit_code_and_report(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = own / "report.json"
    assert command("data", "check", "birds", "--output", report) == 0
    assert "2 images, as published" in capsys.readouterr().out
    assert json.loads(report.read_text())[0]["dataset"] == "birds"
    (own / "data/birds/test/owl/test.png").write_bytes(b"no")
    assert command("data", "check", "birds") == 3
    assert "1 of 2 images cannot be used" in capsys.readouterr().out
    assert command("data", "check", "all") == 3
    shown = capsys.readouterr().out
    assert "Not on this machine: " in shown
    assert "1 data sets examined, 1 errors." in shown
    assert command("data", "check", "cifar10") == 3
    assert "missing" in capsys.readouterr().out


def test_show__any_data_set(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("data", "show", "birds", "--output", own / "sheet.png") == 0
    with Image.open(own / "sheet.png") as sheet:
        assert sheet.width > 1000
    assert command("data", "show", "cifar10") == 3
    assert "cifar10: no folder" in capsys.readouterr().err


def test_prepare(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("data", "prepare", "birds") == 0
    assert "birds is on this machine" in capsys.readouterr().out
    assert command("data", "prepare", "imagenet") == 2
    assert "imagenet cannot be fetched by a library" in capsys.readouterr().err
    assert command("data", "prepare", "hf:birds") == 2
