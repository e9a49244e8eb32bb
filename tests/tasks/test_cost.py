"""What a run will take, from what passes took before."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.cell import Column, PlannedCell, Row
from maskclip_bench.tasks.cost import (
    FILE,
    Estimate,
    Pass,
    device_kind,
    estimate,
    note_passes,
    read_throughput,
    truth,
)
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.protocols.base import open_split

from .conftest import ColourEncoder, make_backbone, squares_task


def noted(images: int = 100, seconds: float = 20.0, row: str = "toy") -> Pass:
    return Pass(row, "cpu", "float32", images, seconds, 4096, 2 * 10**9)


def cells(*protocols: str) -> list[PlannedCell]:
    backbone = make_backbone(ColourEncoder())
    task = squares_task(counts={"train": 300, "test": 150})
    row = Row(backbone.name, backbone.declaration)
    return [PlannedCell(row, Column(PROTOCOLS[name], task), None) for name in protocols]


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


def test_rows_and_machines_that_were_not_measured(workspace: Workspace) -> None:
    note_passes([noted()], workspace)
    for changes in ({"device": "H100"}, {"device": "cpu", "precision": "bfloat16"}):
        found = estimate(cells("knn"), workspace, **changes)
        assert found.unknown == {"toy": 450}
        assert "no throughput measured yet on this machine for toy" in found.sentence()
    assert estimate([], workspace, device="cpu").sentence() == ""


def test_notes_are_added_up_and_survive_damage(workspace: Workspace) -> None:
    note_passes([], workspace)
    assert not (workspace.root / FILE).exists()
    note_passes([noted(100, 20.0), noted(300, 20.0), noted(5, 1.0, row="other")], workspace)
    known = read_throughput(workspace)["toy float32 cpu"]
    assert (known.num_images, known.seconds) == (400, 40.0)
    (workspace.root / FILE).write_text('{"toy float32 cpu": 3}')
    assert read_throughput(workspace) == {}
    note_passes([noted()], workspace)
    assert len(read_throughput(workspace)) == 1


def test_truth_beside_what_was_expected() -> None:
    expected = Estimate(num_images=400, seconds=120.0, num_bytes=10**6)
    assert truth([noted(400, 60.0)], expected) == (
        "Passed 400 images in 1.0 min (7 a second), 2 MB of features; expected were 2.0 min, 1 MB."
    )
    assert truth([noted(400, 60.0)], Estimate()).endswith("2 MB of features.")
    assert truth([], expected) == ""


def test_the_store_notes_its_passes(workspace: Workspace, tmp_path: Path) -> None:
    store, backbone = FeatureStore(tmp_path / "features"), make_backbone(ColourEncoder())
    dataset = open_split(squares_task(), "test", workspace)
    store.images(backbone, dataset)
    store.images(backbone, dataset)
    assert len(store.passes) == 1
    found = store.passes[0]
    assert (found.row, found.device, found.num_images) == ("toy", "cpu", 24)
    outputs = store.images(backbone, dataset)
    assert outputs.joint is not None
    assert found.bytes_per_image == 4 * (outputs.backbone.shape[1] + outputs.joint.shape[1])
    assert found.memory_bytes > 10**6
    assert device_kind("cpu") == "cpu"
