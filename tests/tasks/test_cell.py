"""Cells: their names, what their numbers depend on, where their records are."""

from __future__ import annotations

from dataclasses import replace

from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.cell import (
    Column,
    PlannedCell,
    Row,
    cell_of,
    fingerprints_of_backbone,
    records_of,
)

from .conftest import ColourEncoder, make_backbone, squares_task


def test_planned_cell__names() -> None:
    declaration = make_backbone(ColourEncoder()).declaration
    cell = PlannedCell(Row("toy", declaration, 2), Column(PROTOCOLS["knn"], squares_task()), None)
    assert cell.row_id == "toy__seed2"
    assert cell.unit.key == "toy/2/knn/squares"
    assert cell.unit.label == "Toy (seed 2): knn/squares"
    assert cell.is_to_measure
    assert not replace(cell, refused=ValueError()).is_to_measure


def test_fingerprints__identity_of_the_row_and_the_limit_are_parts(workspace: Workspace) -> None:
    protocol, task = PROTOCOLS["knn"], squares_task()
    backbone = make_backbone(ColourEncoder())
    base = fingerprints_of_backbone(protocol, task, backbone, workspace)
    other = fingerprints_of_backbone(
        protocol, task, replace(backbone, identity="another"), workspace
    )
    assert {part for part in base if base[part] != other[part]} == {"weights"}
    limited = fingerprints_of_backbone(protocol, task, backbone, workspace, limit=3)
    assert {**base, "limit": "3"} == limited
    one, two = (cell_of(protocol, task, "toy", 0, parts) for parts in (base, limited))
    assert one.cell_fingerprint != two.cell_fingerprint
    assert one.task == "knn/squares"


def test_records_of__a_limit_has_a_folder_of_its_own(workspace: Workspace) -> None:
    assert records_of(workspace, None) == workspace.records
    assert records_of(workspace, 7) == workspace.root / "records_limit_7"
