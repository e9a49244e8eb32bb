from __future__ import annotations

import math
from typing import Any

import pandas as pd

from maskclip_bench.results.table_model import ColumnDeclaration, Table, TableCell, TableRow
from maskclip_bench.study.declaration import StudyDeclaration
from maskclip_bench.study.words import conclusions, health_table

COLUMNS = tuple(
    ColumnDeclaration(title=title, task="knn/x", metric="top1_accuracy") for title in ("val", "new")
)


def cell(
    delta: float | None, p: float | None, *, seeds: int = 5, covers: Any = "seeds"
) -> TableCell:
    return TableCell(
        "synthetic",
        value=0.5,
        num_seeds=seeds,
        delta=delta,
        p_value=p,
        adjusted_p_value=p,
        covers=covers if p is not None else "",
    )


def table(*cells: TableCell, seeds: int = 5) -> Table:
    base = TableCell("synthetic", value=0.5, num_seeds=seeds)
    rows = [
        TableRow("chance", "", (base, base)),
        TableRow("CLIP", "", (base, base), "clip"),
        TableRow("MaskCLIP", "", cells, "maskclip"),
    ]
    rows[0] = TableRow("chance", "", (TableCell("chance", value=0.1),) * 2)
    return Table("t", "", "demo", COLUMNS, tuple(rows), ())


def test_conclusions__clear_ones_by_name_and_direction() -> None:
    built = table(cell(0.021, 0.01), cell(-0.03, 0.04))
    assert conclusions(built, baseline="clip", num_seeds=5) == [
        "All 5 seeds are measured.",
        "MaskCLIP: clearly above CLIP in val (+2.1); clearly below CLIP in new (−3.0). "
        "The tests cover the noise of training and of the worlds.",
    ]


def test_conclusions__what_is_not_clear_is_not_told_apart() -> None:
    one = conclusions(table(cell(0.021, 0.01), cell(0.5, 0.06)), baseline="clip", num_seeds=5)
    assert "clearly above CLIP in val (+2.1); not told apart in the other 1." in one[1]
    none = conclusions(table(cell(0.2, 0.3), cell(0.5, 0.06)), baseline="clip", num_seeds=5)
    assert "not told apart from CLIP in any of 2 columns" in none[1]


def test_conclusions__a_partial_result_says_so_first() -> None:
    cells = [cell(0.2, 0.001, seeds=1, covers="samples")] * 2
    found = conclusions(table(*cells, seeds=1), baseline="clip", num_seeds=5)
    assert found[0].startswith("Unfinished: the row with the fewest has 1 of 5 seeds.")
    assert "no method is called better by it" in found[0]
    assert found[1].endswith("The tests cover the noise of the test images alone.")


def test_conclusions__no_test_or_no_row() -> None:
    untested = conclusions(table(*[cell(0.2, None)] * 2), baseline="clip", num_seeds=5)
    assert untested[1] == "MaskCLIP: no test against CLIP is possible yet (other seeds, or none)."
    alone = conclusions(table(*[cell(0.2, None)] * 2), baseline="other", num_seeds=5)
    assert alone == ["Nothing is compared yet: the baseline or all other rows are not measured."]


def test_health__a_line_a_run_in_the_order_of_the_study(study: StudyDeclaration) -> None:
    runs = pd.DataFrame(
        [
            {"row": "maskclip", "seed": 0, "codeword_perplexity_end": 123.456},
            {"row": "clip", "seed": 1, "codeword_perplexity_end": math.nan},
            {"row": "clip", "seed": 0, "codeword_perplexity_end": None},
        ]
    )
    lines = health_table(study, runs).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| clip", "0"],
        ["| clip", "1"],
        ["| maskclip", "0"],
    ]
    assert "123.5" in lines[4] and lines[2].count("–") >= 3
