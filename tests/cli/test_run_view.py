"""What run and plan show: exactly the cells asked for; text of files never acts."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from maskclip_bench.backbones import BackboneDeclaration
from maskclip_bench.cli.run_view import (
    final_tables,
    left_out_line,
    show_asked_for,
    show_failed,
    show_why,
)
from maskclip_bench.errors import DataError
from maskclip_bench.results.records import MetricRecord, Record, RecordStore
from maskclip_bench.results.tables import to_terminal
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


def final_text(plan: Plan, result: RunResult, root: Path) -> str:
    tables = final_tables(plan, result, RecordStore(root))
    return shown(lambda output: [output.print(to_terminal(table)) for table in tables])


def test_final_tables__scores_failures_and_nothing(tmp_path: Path) -> None:
    text = final_text(Plan(cells=[cell(record())]), RunResult(), tmp_path)
    assert "50.0 ±10.0" in text
    assert "x[/bold]" in text
    open_plan = Plan(cells=[cell(None)])
    failed = final_text(open_plan, RunResult(failed=[record(message="what it said")]), tmp_path)
    assert "failed" in failed
    assert "what it said" in failed
    assert "50.0" in final_text(open_plan, RunResult(measured=[record()]), tmp_path)
    assert final_text(open_plan, RunResult(), tmp_path) == ""


def test_final_tables__measured_now_wins_over_what_was_recorded(tmp_path: Path) -> None:
    newer = record().model_copy(
        update={"metrics": {"top1_accuracy": MetricRecord(value=0.7, low=0.6, high=0.8)}}
    )
    text = final_text(Plan(cells=[cell(record())]), RunResult(measured=[newer]), tmp_path)
    assert "70.0" in text
    assert "50.0" not in text


def test_show_asked_for__only_what_was_named_and_nothing_twice() -> None:
    error = DataError("birds: no folder")
    items = [LeftOut("a", "no", "", error), LeftOut("c", "no", "", error), LeftOut("b", "no", "")]
    text = shown(lambda output: show_asked_for(items, output))
    assert text == "\nasked for by name: a, c\n  birds: no folder\n"
    told = [record(message="birds: no folder")]
    assert shown(lambda output: show_asked_for(items, output, told=told)) == ""


def test_left_out_line__counts_and_the_command_that_lists() -> None:
    items = [LeftOut(name, "its data is not here", "") for name in "abc"]
    items.append(LeftOut("d", "it has no text tower", ""))
    assert left_out_line(items, ["plan", "--task", "knn/*"]) == (
        "Left out: 3 because its data is not here; 1 because it has no text tower. Names and "
        "remedies: maskclip-bench plan --task 'knn/*'"
    )


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
