"""What run and plan show: exactly the cells asked for; text of files never acts."""

from __future__ import annotations

import io

from rich.console import Console

from maskclip_bench.backbones import BackboneDeclaration
from maskclip_bench.cli.run_view import (
    cells_table,
    show_failed,
    show_left_out,
    show_why,
)
from maskclip_bench.results.records import Record
from maskclip_bench.tasks import PROTOCOLS, TaskDeclaration
from maskclip_bench.tasks.cell import Column, LeftOut, PlannedCell, Row
from maskclip_bench.tasks.execution import RunResult
from maskclip_bench.tasks.plan import Plan
from maskclip_bench.tasks.why import Why

HOSTILE = "x[/bold]\x1b[31m"


def record(*, message: str | None = None) -> Record:
    values: dict[str, object] = {
        "cell": {
            "backbone": "mine",
            "protocol": "knn",
            "dataset": "squares",
            "world": "demo",
            "cell_fingerprint": "f",
        },
        "status": "ok",
        "preset": "p",
        "preset_version": 1,
        "primary_metric": "top1_accuracy",
        "metrics": {"top1_accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
    }
    if message is not None:
        values |= {
            "status": "failed",
            "metrics": {},
            "primary_metric": None,
            "error": {"type": "ValueError", "message": message, "traceback": ""},
        }
    return Record.model_validate(values)


def cell(recorded: Record | None) -> PlannedCell:
    declaration = BackboneDeclaration.model_validate(
        {
            "name": "mine",
            "display_name": HOSTILE,
            "world": "demo",
            "source": {"python": "a:b"},
        }
    )
    task = TaskDeclaration.model_validate(
        {
            "name": "squares",
            "display_name": "Squares",
            "world": "demo",
            "reader": {"kind": "image_folder", "root": "squares"},
            "splits": {"train": "train", "test": "val"},
            "protocols": {"knn": {}},
            "obtain": "-",
        }
    )
    return PlannedCell(Row("mine", declaration), Column(PROTOCOLS["knn"], task), recorded)


def shown(print_to: object) -> str:
    output = Console(file=io.StringIO(), width=200)
    print_to(output)  # type: ignore[operator]
    text: str = output.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text
    return text


def test_cells_table__scores_failures_and_what_was_left_out() -> None:
    plan = Plan(cells=[cell(record())])
    text = shown(lambda output: output.print(cells_table(plan, RunResult())))
    assert "50.0 ±10.0" in text
    assert "x[/bold]" in text
    open_plan = Plan(cells=[cell(None)])
    failed = RunResult(failed=[record(message="")])
    assert "failed" in shown(lambda output: output.print(cells_table(open_plan, failed)))
    now = RunResult(measured=[record()])
    assert "50.0" in shown(lambda output: output.print(cells_table(open_plan, now)))
    assert "left out" in shown(lambda output: output.print(cells_table(open_plan, RunResult())))


def test_show_left_out__reasons_and_remedies() -> None:
    items = [LeftOut(HOSTILE, "its data is not here", HOSTILE), LeftOut("b", "no text tower", "")]
    text = shown(lambda output: show_left_out(items, output, remedies=True))
    assert "x[/bold]" in text
    assert "Left out (2)" in text
    assert shown(lambda output: show_left_out([], output, remedies=True)) == ""


def test_show_failed__an_error_of_several_cells_is_shown_once_and_whole() -> None:
    records = [record(message=f"{HOSTILE}:\n  - 'a' is missing."), record(message="other")]
    text = shown(lambda output: show_failed([records[0], records[0], records[1]], output))
    assert text.count("x[/bold]") == 1
    assert "failed mine/knn/squares, mine/knn/squares\n  ValueError: x[/bold]" in text
    assert "    - 'a' is missing." in text
    assert "failed mine/knn/squares\n  ValueError: other" in text
    assert shown(lambda output: show_failed([], output)) == ""
    assert "unknown" in shown(
        lambda output: show_failed([record(message="").model_copy(update={"error": None})], output)
    )


def test_show_why__holds_changed_failed_and_absent() -> None:
    assert "has no record" in shown(lambda output: show_why(Why("a/b/c", None), output))
    assert "a/b/c holds" in shown(lambda output: show_why(Why("a/b/c", record()), output))
    changed = Why("a/b/c", record(), {"data": ("1", "2")}, {"torch": ("2.4", "2.5")})
    text = shown(lambda output: show_why(changed, output))
    assert "is measured again" in text
    assert "the content of the data" in text
    assert "then 1, now 2" in text
    assert "torch: then 2.4, now 2.5" in text
    failed = Why("a/b/c", record(message=HOSTILE))
    assert "failed and is tried again" in shown(lambda output: show_why(failed, output))
