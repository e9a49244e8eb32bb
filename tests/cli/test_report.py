"""`maskclip-bench report` and `show`, on records that need no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskclip_bench.results.records import Cell, RecordStore, measured_record
from tests.report.measurements import MADE


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Two rows on two tasks."""
    store = RecordStore(tmp_path / "workspace/records")
    for task in ("knn/objects", "retrieval/captions"):
        protocol, _, dataset = task.partition("/")
        for row, shift in (("first", 5), ("second", 2)):
            cell = Cell(
                backbone=row, protocol=protocol, dataset=dataset, world="real", cell_fingerprint="f"
            )
            measurement = MADE[task](shift)
            store.save(measured_record(cell, measurement), measurement.outcomes)
    return tmp_path / "workspace"


def test_report__everything_into_the_workspace(
    in_process: Callable[..., Any], workspace: Path
) -> None:
    outcome = in_process("report", "--no-pictures")
    assert outcome.code == 0, outcome.errors
    assert f"report: {workspace / 'report/index.html'}" in outcome.output.replace("\n", "")
    assert (workspace / "report/cells/first/knn__objects.html").is_file()


def test_report__narrowed(in_process: Callable[..., Any], workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = in_process(
        "report", "-b", "second", "-t", "*/objects", "-o", str(out), "--title", "Mine"
    )
    assert outcome.code == 0, outcome.errors
    assert [path.name for path in out.rglob("cells/*/*.html")] == ["knn__objects.html"]
    assert "<title>Mine</title>" in (out / "index.html").read_text()


def test_report__records_of_another_folder(
    in_process: Callable[..., Any], workspace: Path, tmp_path: Path
) -> None:
    (workspace / "records").rename(tmp_path / "elsewhere")
    outcome = in_process("report", "--records", str(tmp_path / "elsewhere"), "--no-pictures")
    assert outcome.code == 0, outcome.errors


def test_report__wrong_words(in_process: Callable[..., Any], workspace: Path) -> None:
    outcome = in_process("report", "-b", "third")
    assert outcome.code == 2
    assert "Nothing of third is recorded" in outcome.errors
    assert in_process("report", "--suite", "nosuch").code == 2


def test_show__a_cell(in_process: Callable[..., Any], workspace: Path, tmp_path: Path) -> None:
    outcome = in_process(
        "show", "first/knn/objects", "-o", str(tmp_path / "out"), "--format", "svg"
    )
    assert outcome.code == 0, outcome.errors
    assert (tmp_path / "out/first__knn__objects__confusion.svg").is_file()
    assert outcome.output.count("wrote") == 6


def test_show__wrong_words(in_process: Callable[..., Any], workspace: Path, tmp_path: Path) -> None:
    assert "no recorded cell" in in_process("show", "third/knn/objects").errors
    assert "Use png or svg" in in_process("show", "first/knn/objects", "-f", "gif").errors
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert (
        "Say which models look at the image" in in_process("show", str(tmp_path / "a.png")).errors
    )


def test_run__ends_with_the_report_and_the_next_command(
    in_process: Callable[..., Any], workspace: Path, tiny_catalogue: Path
) -> None:
    """Of what is recorded; the rows of the suite itself need training, and are not run here."""
    from io import StringIO

    from rich.console import Console

    from maskclip_bench.cli.report import report_of_run
    from maskclip_bench.runtime import Workspace
    from maskclip_bench.tasks.suite import SuiteDeclaration

    output = StringIO()
    suite = SuiteDeclaration(description="", backbones=["first", "second"])
    console = Console(file=output, width=200)
    report_of_run("my suite", suite, Workspace.open(workspace), {}, console)
    assert f"report: {workspace}/report/index.html" in output.getvalue()
    assert "maskclip-bench report --suite 'my suite'" in output.getvalue()
    (workspace / "report/data/report.js").unlink()
    (workspace / "report/own.txt").write_text("mine")
    report_of_run("my suite", suite, Workspace.open(workspace), {}, console)
    assert "No report: " in output.getvalue()
