from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.runtime import Workspace
from maskclip_bench.storage import remove_leftovers
from maskclip_bench.tasks.pieces import Piece, files_of_maps, pieces_of, pretraining_unit
from maskclip_bench.tasks.plan import Plan, make_plan
from maskclip_bench.tasks.suite import SuiteDeclaration, load_suite


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    rows = ["slip_vit-demo_demo", "clip_vit-demo_demo", "maskclip_vit-demo_demo"]
    suite = SuiteDeclaration(
        description="", backbones=rows, tasks=["knn/demo_objects", "detection/demo_instances"]
    )
    return make_plan(suite, Workspace.open(tmp_path))


def test_pieces__the_soonest_first_then_the_longest(plan: Plan) -> None:
    pieces = pieces_of(plan, "demo")
    assert [
        (piece.kind, piece.row.name.split("_")[0] if piece.row else "") for piece in pieces
    ] == [
        ("demo", ""),
        ("pretrain", "clip"),
        ("row", "clip"),
        ("pretrain", "slip"),
        ("row", "slip"),
        ("pretrain", "maskclip"),
        ("row", "maskclip"),
        ("job", "clip"),
        ("job", "slip"),
        ("job", "maskclip"),
    ]
    assert len({piece.key for piece in pieces}) == len(pieces)


def test_pieces__each_waits_for_what_it_needs(plan: Plan) -> None:
    pieces = pieces_of(plan, "demo")
    before: set[str] = set()
    for piece in pieces:
        assert piece.after <= before
        before.add(piece.key)
    needs = {piece.key: piece.after for piece in pieces}
    for piece in pieces:
        if piece.kind in ("row", "job"):
            assert piece.row is not None
            assert piece.after == {pretraining_unit(piece.row).key}
        if piece.kind == "pretrain":
            assert needs[piece.key] == {"demo"}


def test_pieces__of_a_plan_with_nothing_to_do() -> None:
    assert pieces_of(Plan(cells=[]), "demo") == []
    assert Piece("demo", "a") == Piece("demo", "a")


def test_pretraining_unit__a_longer_method_weighs_more(plan: Plan) -> None:
    seconds = {row.name: pretraining_unit(row).expected_seconds for row in plan.pretraining}
    assert seconds["clip_vit-demo_demo"] < seconds["maskclip_vit-demo_demo"]
    assert seconds["maskclip_vit-demo_demo"] < seconds["slip_vit-demo_demo"]


def test_pieces__make_demo_begins_with_clip(tmp_path: Path) -> None:
    plan = make_plan(load_suite("all"), Workspace.open(tmp_path))
    first = next(piece for piece in pieces_of(plan, "demo") if piece.kind == "pretrain")
    assert first.row is not None
    assert first.row.name == "clip_vit-demo_demo"


def test_pieces__jobs_come_last_and_the_longest_first(tmp_path: Path) -> None:
    """And tasks of one training do not wait on its lock with a worker each."""
    rows = ["maskclip_vit-demo_demo", "clip_vit-demo_demo"]
    tasks = ["finetune/demo_objects", "finetune/demo_objects_ood", "segmentation/demo_scenes"]
    suite = SuiteDeclaration(
        description="", backbones=rows, tasks=[*tasks, "detection/demo_instances"]
    )
    plan = make_plan(suite, Workspace.open(tmp_path))
    jobs = [piece for piece in pieces_of(plan, "demo") if piece.kind == "job"]
    seconds = [piece.cells[0].unit.expected_seconds for piece in jobs]
    assert seconds == sorted(seconds, reverse=True)
    assert [piece.cells[0].column.protocol.name for piece in jobs[:2]] == ["detection"] * 2
    found = {(piece.cells[0].row.name, piece.cells[0].column.name): piece for piece in jobs}
    for row in rows:
        first, second = found[row, tasks[0]], found[row, tasks[1]]
        assert second.after == first.after | {first.key}
        assert found[row, tasks[2]].after == first.after


def test_pieces__the_second_job_of_a_row_comes_after_the_first_of_all(tmp_path: Path) -> None:
    rows = ["slip_vit-demo_demo", "clip_vit-demo_demo"]
    tasks = ["segmentation/demo_scenes", "segmentation/demo_scenes_linear"]
    plan = make_plan(
        SuiteDeclaration(description="", backbones=rows, tasks=tasks), Workspace.open(tmp_path)
    )
    jobs = [piece.cells[0] for piece in pieces_of(plan, "demo") if piece.kind == "job"]
    assert [(cell.row.name.split("_")[0], cell.column.declaration.name) for cell in jobs] == [
        ("clip", "demo_scenes"),
        ("slip", "demo_scenes"),
        ("clip", "demo_scenes_linear"),
        ("slip", "demo_scenes_linear"),
    ]


def test_files_of_maps__one_for_each_row_with_several_jobs(tmp_path: Path, plan: Plan) -> None:
    assert files_of_maps(plan, tmp_path) == {}  # a detection each
    tasks = ["segmentation/demo_scenes", "segmentation/demo_scenes_linear", "knn/demo_objects"]
    rows = ["slip_vit-demo_demo", "clip_vit-demo_demo"]
    plan = make_plan(
        SuiteDeclaration(
            description="", backbones=rows, tasks=[*tasks, "detection/demo_instances"]
        ),
        Workspace.open(tmp_path),
    )
    files = files_of_maps(plan, tmp_path)
    assert len(files) == 4
    by_row = {row: {file for key, file in files.items() if row in key} for row in ("slip", "clip")}
    assert all(len(found) == 1 for found in by_row.values())
    assert by_row["slip"] != by_row["clip"]
    for file in files.values():
        file.write_text("of a process that runs")
    assert remove_leftovers(tmp_path) == []
