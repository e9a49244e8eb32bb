"""`table`: declared tables and tables of recorded cells, in every format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.results.latex_checker import check_latex

RECORDS = Path(__file__).resolve().parents[2] / "results/records"
ROWS = ("clip_vit-demo_demo", "slip_vit-demo_demo")
OURS = ("table", "-b", ROWS[0], "-b", ROWS[1], "-t", "*/demo_objects")


@pytest.fixture
def table(in_process: Any, tmp_path: Path) -> Any:
    """The command, on committed records of two rows."""
    for row in ROWS:
        shutil.copytree(RECORDS / row, tmp_path / "workspace/records" / row)
    return in_process


def test_table__rows_in_the_order_asked_for_and_the_first_is_the_baseline(table: Any) -> None:
    values = json.loads(table(*OURS, "--json").output)
    assert [row["backbone"] for row in values["rows"]] == [None, *ROWS]
    assert values["baseline"] == ROWS[0]
    assert all(column["task"].endswith("/demo_objects") for column in values["columns"])
    turned = ("table", "-b", ROWS[1], "-b", ROWS[0], "--no-chance", "--json", "-t", "knn/*")
    values = json.loads(table(*turned).output)
    assert [row["backbone"] for row in values["rows"]] == [ROWS[1], ROWS[0]]
    assert values["baseline"] == ROWS[1]
    values = json.loads(table(*turned, "--baseline", ROWS[0]).output)
    assert values["baseline"] == ROWS[0]


def test_table__names_are_those_of_the_files(table: Any) -> None:
    output = table(*OURS).output
    assert "SLIP" in output
    assert "slip_vit" not in output


@pytest.mark.parametrize("kind", ["markdown", "latex", "html", "csv", "json"])
def test_table__text_formats(table: Any, kind: str, tmp_path: Path) -> None:
    shown = table(*OURS, "--format", kind).output
    result = table(*OURS, "--format", kind, "--output", str(tmp_path / "file"))
    assert result.code == 0
    assert (tmp_path / "file").read_text().strip() == shown.strip()
    if kind == "latex":
        check_latex(shown)


@pytest.mark.parametrize("suffix", ["md", "tex", "html", "csv", "json", "png", "svg", "pdf"])
def test_table__a_file_s_suffix_says_the_format(table: Any, suffix: str, tmp_path: Path) -> None:
    result = table("table", "demo", "--output", str(tmp_path / f"new/t.{suffix}"))
    assert result.code == 0, result.errors
    assert (tmp_path / f"new/t.{suffix}").stat().st_size > 0


def test_table__into_a_folder(table: Any, tmp_path: Path) -> None:
    assert table("table", "demo", "--output", str(tmp_path / "folder")).code == 0
    assert table(*OURS, "--output", str(tmp_path / "folder")).code == 0
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    kinds = ("csv", "md", "png")
    assert names == [f"{name}.{kind}" for name in ("demo", "recorded_demo") for kind in kinds]


def test_table__of_a_file_goes_into_the_folder_and_not_beside_the_file(
    table: Any, tmp_path: Path
) -> None:
    own = tmp_path / "own" / "mine.yaml"
    own.parent.mkdir()
    shutil.copy(RECORDS.parents[1] / "configs/tables/demo.yaml", own)
    assert table("table", str(own), "--output", str(tmp_path / "folder")).code == 0
    assert [path.name for path in own.parent.iterdir()] == ["mine.yaml"]
    assert {path.stem for path in (tmp_path / "folder").iterdir()} == {"mine"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("table",), "Say which table"),
        (("table", "demo", "-t", "knn/*"), "its own rows and columns"),
        (("table", "-b", "nothing"), "No recorded row 'nothing'"),
        (("table", "-t", "knn/nothing"), "No recorded task 'knn/nothing'"),
        ((*OURS, "--baseline", "nothing"), "The baseline 'nothing' is not among the rows"),
        (("table", "demo", "--baseline", "nothing"), "is not a measured row of the table"),
        ((*OURS, "--reference", "paper"), "goes with a declared table"),
        (("table", "demo", "--reference", "papers"), "Use none or paper"),
        ((*OURS, "--format", "doc"), "No format 'doc'"),
        ((*OURS, "--format", "png"), "say where to write it"),
        ((*OURS, "--json", "--format", "csv"), "two formats"),
    ],
)
def test_table__what_is_wrong_is_said(table: Any, arguments: tuple[str, ...], said: str) -> None:
    result = table(*arguments)
    assert result.code == 2
    assert said in " ".join(result.errors.split())


def test_table__rows_and_columns_that_do_not_meet(table: Any, tmp_path: Path) -> None:
    for path in (tmp_path / "workspace/records" / ROWS[0]).glob("knn__*"):
        path.unlink()
    result = table("table", "-b", ROWS[0], "-t", "knn/*")
    assert result.code == 2
    assert "No record fits both" in " ".join(result.errors.split())
