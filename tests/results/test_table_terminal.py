from __future__ import annotations

import pytest

from maskclip_bench.results.reference import load_references
from maskclip_bench.results.tables import (
    ColumnDeclaration,
    Table,
    TableCell,
    TableRow,
    build_table,
    load_table,
)
from tests.results.test_rendering import example, render


def test_terminal__one_line_a_cell_where_it_fits() -> None:
    lines = render(example(), 100).splitlines()
    assert lines[0].rstrip() == "A title"
    (line,) = [line for line in lines if line.strip().startswith("MaskCLIP")]
    assert line.split() == ["MaskCLIP", "31.2", "±2.9", "+3.6*", "22.1", "±2.6", "−0.4", "-"]
    assert lines[-1].rstrip() == "A * note."


def test_terminal__rows_stand_under_their_groups() -> None:
    """Three rows of one name are told apart by the line above them."""
    column = ColumnDeclaration(title="t", task="a/b", metric="m")
    rows = tuple(
        TableRow("CLIP", f"{epochs} epochs", (TableCell("measured", epochs / 100),))
        for epochs in (25, 50, 75)
    )
    table = Table("T", "", "real", (column,), rows, ())
    lines = [line.strip() for line in render(table, 60).splitlines()]
    lines = [line for line in lines if line and not set(line) <= {"─"}]
    assert lines[2:] == [
        "25 epochs",
        "CLIP  25.0",
        "50 epochs",
        "CLIP  50.0",
        "75 epochs",
        "CLIP  75.0",
    ]


@pytest.mark.parametrize("width", [20, 30, 40, 50, 80])
def test_terminal__never_cuts_a_number_nor_a_title(width: int) -> None:
    text = render(example(), width)
    assert "…" not in text
    for word in ("31.2", "±2.9", "+3.6*", "−0.4", "30.00", "failed", "Zero-shot", "unseen", "R@1"):
        assert word in text
    for word in ("equal", "pairs", "theirs", "MaskCLIP"):
        assert word in text
    assert all(len(line) <= width for line in text.splitlines())


def test_terminal__long_names_are_folded_not_cut() -> None:
    name = "x" * 70
    column = ColumnDeclaration(title=f"{name} tail", group="g" * 50, task="a/b", metric="m")
    row = TableRow(name, name, (TableCell("measured", 0.5),))
    text = render(Table(name, "", "real", (column,), (row,), ()), 40)
    assert text.replace("\n", "").replace(" ", "").count("x") == 4 * 70
    assert text.count("g") == 50
    assert all(len(line) <= 40 for line in text.splitlines())


def test_terminal__more_columns_than_fit_are_turned_into_lines() -> None:
    columns = tuple(
        ColumnDeclaration(group="Zero-shot", title=f"set{index}", task=f"a/b{index}", metric="m")
        for index in range(30)
    )
    rows = tuple(
        TableRow(name, "", (TableCell("measured", 0.123, 0.01, 1),) * 30) for name in ("A", "B")
    )
    lines = render(Table("T", "", "real", columns, rows, ()), 80).splitlines()
    (line,) = [line for line in lines if line.startswith("set7 ")]
    assert line.split() == ["set7", "12.3", "±1.0", "12.3", "±1.0"]
    assert any(line.strip() == "Zero-shot" for line in lines)


def test_terminal__wide_in_both_directions_goes_into_blocks() -> None:
    table = build_table(load_table("zero_shot_suite"), references=load_references())
    text = render(table, 100)
    assert text.count("50 epochs, published by A-CLIP") == 3
    assert "…" not in text
    assert all(len(line) <= 100 for line in text.splitlines())
