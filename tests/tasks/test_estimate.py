"""What a run will take, from what passes took before."""

from __future__ import annotations

from typing import Any

import pytest

from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.cell import Column, PlannedCell, Row
from maskclip_bench.tasks.cost import Pass, note_passes
from maskclip_bench.tasks.estimate import Estimate, estimate, num_images, truth

from .conftest import ColourEncoder, make_backbone, squares_task


def noted(images: int = 100, seconds: float = 20.0, row: str = "toy") -> Pass:
    return Pass(row, "cpu", "float32", images, seconds, 4096, 2 * 10**9)


def cells(*protocols: str, **task: Any) -> list[PlannedCell]:
    backbone = make_backbone(ColourEncoder())
    declared = squares_task(**{"counts": {"train": 300, "test": 150}, **task})
    row = Row(backbone.name, backbone.declaration)
    return [PlannedCell(row, Column(PROTOCOLS[name], declared), None) for name in protocols]


def absent(**more: Any) -> dict[str, Any]:
    """A data set of unknown size that is not here."""
    reader = {"kind": "image_folder", "root": "absent"}
    return {"name": "absent", "counts": {}, "reader": reader, **more}


def test_each_split_once_a_row(workspace: Workspace) -> None:
    note_passes([noted()], workspace)
    found = estimate(cells("knn", "few_shot", "zero_shot_classification"), workspace, device="cpu")
    assert (found.num_images, found.seconds) == (450, pytest.approx(90.0))
    assert (found.num_bytes, found.memory_bytes) == (450 * 4096, 2 * 10**9)
    assert found.sentence() == (
        "450 images to pass; about 1.5 min, 2 MB of features, 2.0 GB of memory"
    )
    only_test = estimate(cells("zero_shot_classification"), workspace, device="cpu")
    assert only_test.num_images == 150
    limited = estimate(cells("knn"), workspace, device="cpu", limit=100)
    assert limited.num_images == 200


def test_what_is_not_declared_is_counted_in_the_files(workspace: Workspace) -> None:
    note_passes([noted()], workspace)
    found = estimate(cells("knn", counts={}), workspace, device="cpu")
    assert (found.num_images, found.uncounted) == (48 + 24, set())
    half = estimate(cells("knn", counts={"train": 300}), workspace, device="cpu")
    assert half.num_images == 300 + 24


def test_what_is_neither_declared_nor_here_is_not_zero(workspace: Workspace) -> None:
    note_passes([noted()], workspace)
    unknown = cells("knn", **absent())
    alone = estimate(unknown, workspace, device="cpu", limit=10)
    assert (alone.num_images, alone.uncounted) == (0, {"absent"})
    assert alone.sentence() == (
        "images to pass: those of absent, whose number is known when they are read"
    )
    both = estimate([*unknown, *cells("knn")], workspace, device="cpu")
    assert both.num_images == 450
    assert both.sentence().startswith(
        "450 images to pass, and those of absent, whose number is known when they are read; about "
    )
    assert num_images(squares_task(**absent()), "test", workspace) is None
    names = Estimate(uncounted={"d", "c", "b", "a"}).sentence()
    assert "those of a, b, c, ..., whose" in names


def test_rows_and_machines_that_were_not_measured(workspace: Workspace) -> None:
    note_passes([noted()], workspace)
    for changes in ({"device": "H100"}, {"device": "cpu", "precision": "bfloat16"}):
        found = estimate(cells("knn"), workspace, **changes)
        assert found.unknown == {"toy": 450}
        assert found.sentence() == (
            "450 images to pass; no throughput measured yet on this machine for toy"
        )
    assert estimate([], workspace, device="cpu").sentence() == ""


def test_cells_that_train_are_told_apart(workspace: Workspace) -> None:
    note_passes([noted()], workspace)
    found = estimate(cells("finetune", "knn"), workspace, device="cpu")
    assert found.sentence().endswith("; 1 cells train, whose time is not in it")
    assert estimate(cells("finetune"), workspace, device="cpu").sentence() == ""


def test_truth_beside_what_was_expected() -> None:
    expected = Estimate(num_images=400, seconds=120.0, num_bytes=10**6)
    assert truth([noted(400, 60.0)], expected) == (
        "Passed 400 images in 1.0 min (7 a second), 2 MB of features; expected were 2.0 min, 1 MB."
    )
    assert truth([noted(400, 60.0)], Estimate()).endswith("2 MB of features.")
    assert truth([], expected) == ""


def test_truth__a_short_run_is_said_in_seconds() -> None:
    assert "in 30 s (3 a second)" in truth([noted(100, 30.0)], Estimate())
    assert "in less than 1 s" in truth([noted(100, 0.5)], Estimate())
