"""What plan shows: counts that fit 80 columns, and each reason once and whole."""

from __future__ import annotations

import io

from rich.console import Console

from maskclip_bench.backbones import BackboneDeclaration
from maskclip_bench.cli.plan_view import cell_name, show_missing, show_plan, state
from maskclip_bench.errors import ConfigError
from maskclip_bench.results.records import Record
from maskclip_bench.tasks import PROTOCOLS, TaskDeclaration
from maskclip_bench.tasks.cell import Column, LeftOut, PlannedCell, Row
from maskclip_bench.tasks.plan import Plan

from .test_run_view import record

ROWS = ("CLIP trained for longer than all others", "MaskCLIP", "x[/bold]\x1b[31m")
DATASET = "a_data_set_with_a_rather_long_name_of_its_own"


def cell(row: str, protocol: str, recorded: Record | None, wrong: str = "") -> PlannedCell:
    declaration = BackboneDeclaration.model_validate(
        {
            "name": row.split("[")[0].split()[0].lower()[:8],
            "display_name": row,
            "world": "demo",
            "source": {"recipe": "demo/clip"},
        }
    )
    task = TaskDeclaration.model_validate(
        {
            "name": DATASET,
            "display_name": "Squares",
            "world": "demo",
            "reader": {"kind": "image_folder", "root": "squares"},
            "splits": {"train": "train", "test": "val"},
            "protocols": {protocol: {}},
            "obtain": "-",
        }
    )
    column = Column(PROTOCOLS[protocol], task)
    refused = ConfigError(wrong) if wrong else None
    return PlannedCell(Row(declaration.name, declaration), column, recorded, refused=refused)


def plan() -> Plan:
    wrong = "settings of knn:\n  - unknown key 'k_'.\n  - 'batch' is missing."
    cells = [cell(row, "zero_shot_classification", record()) for row in ROWS]
    cells += [cell(ROWS[0], "knn", None)]
    cells += [cell(row, "knn", None, wrong) for row in ROWS[1:]]
    return Plan(cells=cells, pretraining=[cells[0].row])


def shown(made: Plan, *, width: int = 80, cells: bool = False) -> str:
    output = Console(file=io.StringIO(), width=width)
    show_plan(made, output, cells=cells)
    text: str = output.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text
    return text


def test_state__of_each_kind_of_cell() -> None:
    found = [state(each) for each in plan().cells]
    assert found == ["recorded"] * 3 + ["to measure"] + ["not possible"] * 2


def test_show_plan__counts_for_rows_and_tasks_on_80_columns() -> None:
    text = shown(plan())
    assert "6 cells: 3 recorded, 1 to measure, 2 not possible" in text
    tables = text.split("not possible clip")[0].split("not possible maskclip")[0]
    assert all(len(line) <= 80 for line in tables.splitlines())
    assert "…" not in text
    for row in (ROWS[0], "MaskCLIP"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"{row}  ")]
        assert line.split()[-2:] == ["1", "1"]
    header = next(line for line in tables.splitlines() if line.startswith("task "))
    first = [line[: header.index("recorded")].rstrip() for line in tables.splitlines()]
    for protocol in ("zero_shot_classification", "knn"):
        assert f"{protocol}/{DATASET}" in "".join(first)
    assert "CLIP trained for longer than all others (demo/clip)" in text


def test_show_plan__a_reason_is_shown_once_and_whole() -> None:
    text = shown(plan())
    assert text.count("unknown key") == 1
    assert f"not possible maskclip/knn/{DATASET}, x/knn/{DATASET}\n" in text
    assert "\n    - 'batch' is missing." in text


def test_show_plan__every_cell_as_why_takes_it() -> None:
    text = shown(plan(), cells=True)
    assert f"to measure    clip/knn/{DATASET}\n" in text
    assert cell_name(plan().cells[0]) == f"clip/zero_shot_classification/{DATASET}"


def missing(items: list[LeftOut], *, remedies: bool = False) -> str:
    output = Console(file=io.StringIO(), width=80)
    show_missing(items, output, remedies=remedies)
    text: str = output.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_show_missing__remedies_of_a_few_names_of_many() -> None:
    few = [LeftOut(f"row{n}", "no weights", f"fetch {n} [now]") for n in range(3)]
    text = missing(few)
    assert "Left out (3):" in text
    assert "    row1: fetch 1 [now]\n" in text
    many = [LeftOut(f"row{n}", "no weights", f"fetch {n}") for n in range(40)]
    text = missing(many)
    assert "no weights (40)" in text
    assert "row39" in text
    assert "fetch" not in text
    assert "plan --backbone NAME --task TASK" in text
    assert text.count("\n") < 12
    assert "row39: fetch 39" in missing(many, remedies=True)
    sets = [LeftOut(f"*/set{n}", "no data", "") for n in range(40)]
    assert "maskclip-bench data list" in missing(sets)
    assert missing([]) == ""


def test_show_missing__errors_of_what_was_asked_for_once() -> None:
    broken = LeftOut("mine", "its file is broken", "Correct it.", ConfigError("mine.yaml:\n  - x"))
    text = missing([broken])
    assert "mine: Correct it." in text
    assert "error: mine\n  mine.yaml:\n    - x\n" in text


def test_show_plan__nothing() -> None:
    assert shown(Plan()) == "0 cells\n"
