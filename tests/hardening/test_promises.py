"""Promises of docs/trust.md about results, seen from the command line: damage, disks, names."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.records import Cell, RecordStore, measured_record
from maskclip_bench.results.tables import TableDeclaration, build_table
from tests.hardening.harness import HOSTILE_NAMES, HOSTILE_TEXTS, command, damaged

COLUMN = {"group": "kNN", "title": "birds", "task": "knn/birds", "metric": "top1_accuracy"}


def save_records(root: Path, *, hits: int = 10) -> RecordStore:
    store = RecordStore(root)
    for backbone in ("one", "two"):
        outcomes = pd.DataFrame(
            {
                "sample_id": [f"s{i}" for i in range(40)],
                "group": [f"g{i // 2}" for i in range(40)],
                "top1_accuracy": (np.arange(40) < hits).astype(float),
            }
        )
        cell = Cell(
            backbone=backbone, protocol="knn", dataset="birds", world="real", cell_fingerprint="f"
        )
        measurement = Measurement(
            {"top1_accuracy": Metric(hits / 40)}, "top1_accuracy", outcomes, "p"
        )
        store.save(measured_record(cell, measurement), outcomes)
    return store


def declaration(*, name: str = "One", title: str = "A table") -> dict[str, object]:
    return {
        "title": title,
        "caption": title,
        "world": "real",
        "columns": [COLUMN],
        "rows": [
            {"name": name, "group": name, "backbone": "one"},
            {"name": "Two", "backbone": "two"},
        ],
        "baseline": "two",
    }


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    save_records(tmp_path / "w" / "records")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(declaration()))
    return tmp_path / "w"


FILES = {
    "record": lambda root: root / "one" / "knn__birds.json",
    "outcomes": lambda root: next(root.glob("one/*.parquet")),
}


@pytest.mark.parametrize("what", FILES)
def test_damage__of_a_record_never_shows_another_number(what: str, tmp_path: Path) -> None:
    place: Callable[[Path], Path] = FILES[what]
    whole = place(save_records(tmp_path / "whole").root).read_bytes()
    table = TableDeclaration.model_validate(declaration())
    for name, content in damaged(whole):
        store = save_records(tmp_path / name.replace(" ", "_"))
        place(store.root).write_bytes(content)
        built = build_table(table, store)
        shown = {row.name: row.cells[0].value for row in built.rows}
        assert shown.get("One") in (None, 0.25), name
        assert shown["Two"] == 0.25, name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_damage__table_goes_on_and_verify_repairs(workspace: Path) -> None:
    (workspace / "records" / "one" / "knn__birds.json").write_bytes(b"\xff\x00{")
    checked = command("verify", str(workspace))
    checked.assert_clean(3)
    assert "is damaged" in checked.output
    shown = command("table", str(workspace.parent / "t.yaml"), "--workspace", str(workspace))
    shown.assert_clean(0)
    assert "Two" in shown.output
    assert "damaged" in shown.errors
    command("verify", str(workspace), "--fix").assert_clean(0)
    command("verify", str(workspace)).assert_clean(0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names__of_a_workspace(name: str, tmp_path: Path) -> None:
    root = tmp_path / HOSTILE_NAMES[name]
    save_records(root / "records")
    run = command("verify", "--", str(root))
    run.assert_clean(0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_texts__in_a_table_and_in_a_list_never_act(name: str, workspace: Path) -> None:
    text = HOSTILE_TEXTS[name]
    catalogue = workspace.parent / "catalogue"
    for folder, file, content in (
        ("configs/tables", "t.yaml", declaration(name=text, title=text)),
        (
            "backbones",
            "hostile.yaml",
            {"display_name": text, "world": "real", "source": {"timm": "vit_tiny_patch16_224"}},
        ),
    ):
        (catalogue / folder).mkdir(parents=True)
        (catalogue / folder / file).write_text(yaml.safe_dump(content))
    variables = {"MASKCLIP_BENCH_CATALOGUE": str(catalogue)}
    out = workspace.parent / "out"
    arguments = ("table", "t", "--workspace", str(workspace), "--output", str(out))
    command(*arguments, **variables).assert_clean(0)
    command("list", "tables", **variables).assert_clean(0)
    command("list", "backbones", **variables).assert_clean(0, 2)
    for line in (out / "t.csv").read_text(encoding="utf-8").splitlines()[1:]:
        assert not line.startswith(("=", "+", "-", "@", '"='))
    assert "<script" not in (out / "t.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_output__full_closed_and_where_no_folder_can_be(workspace: Path, tmp_path: Path) -> None:
    base = [sys.executable, "-m", "maskclip_bench"]
    table = ["table", str(workspace.parent / "t.yaml"), "--workspace", str(workspace)]
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            result = subprocess.run(
                [*base, *table], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert result.returncode == 4
        assert "Traceback" not in result.stderr
        assert "No space left on device" in result.stderr
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [*base, *table], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert "Traceback" not in result.stderr
    (tmp_path / "file").touch()
    run = command(*table, "--output", str(tmp_path / "file" / "out"))
    run.assert_clean(4)
    assert "Cannot write" in run.errors


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_disk__a_limit_on_file_sizes_leaves_what_was_written(workspace: Path) -> None:
    """As a full disk: the files of the table cannot be written, the records stay whole."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    result = subprocess.run(
        [
            *(sys.executable, "-m", "maskclip_bench", "table", str(workspace.parent / "t.yaml")),
            *("--workspace", str(workspace), "--output", str(workspace / "out")),
        ],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 4, result.stderr
    assert "Traceback" not in result.stderr
    assert list((workspace / "out").iterdir()) == []
    command("verify", str(workspace)).assert_clean(0)
