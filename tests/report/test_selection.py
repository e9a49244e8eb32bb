from __future__ import annotations

from collections.abc import Callable

import pytest

from maskclip_bench.errors import ConfigError
from maskclip_bench.report.selection import select
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.tasks.suite import SuiteDeclaration
from tests.report.measurements import MADE


def test_select__everything(two_rows: RecordStore) -> None:
    selection = select(two_rows)
    assert [row.backbone for row in selection.rows] == ["first", "second"]
    assert [row.series for row in selection.rows] == [0, 1]
    assert selection.baseline == "first"
    assert len(selection.all()) == 8
    assert selection.has("first")
    assert not selection.has("third")


def test_select__rows_and_tasks_by_name(two_rows: RecordStore) -> None:
    selection = select(two_rows, backbones=["second", "first"], tasks=["*/objects", "retrieval/*"])
    assert [row.backbone for row in selection.rows] == ["second", "first"]
    assert selection.baseline == "second"
    assert selection.tasks == ["knn/objects", "retrieval/captions"]


def test_select__a_suite(two_rows: RecordStore) -> None:
    suite = SuiteDeclaration(
        description="",
        backbones=["second", "absent", "first"],
        tasks=["*/objects", "*/scenes"],
        without_cells=["first/linear_segmentation/*"],
        tables=["demo", "no_such_table"],
    )
    selection = select(two_rows, suite=suite)
    assert [row.backbone for row in selection.rows] == ["second", "first"]
    assert set(selection.records) == {
        ("first", "knn/objects"),
        ("second", "knn/objects"),
        ("second", "linear_segmentation/scenes"),
    }
    assert selection.tables == ["demo", "no_such_table"]


def test_select__declared_rows_have_their_names_and_order(
    store: RecordStore, save: Callable[..., Record]
) -> None:
    for name in ("maskclip_vit-demo_demo", "clip_vit-demo_demo", "mine"):
        save(name, "knn/demo_objects", MADE["knn/objects"](3))
    suite = SuiteDeclaration(description="", tables=["demo"])
    selection = select(store, suite=suite)
    assert [row.label for row in selection.rows] == ["CLIP", "MaskCLIP", "mine"]
    assert selection.baseline == "clip_vit-demo_demo"
    assert selection.datasets["demo_objects"].display_name == "Demo objects"


def test_select__nothing_is_recorded(two_rows: RecordStore) -> None:
    with pytest.raises(ConfigError, match="Nothing of third is recorded in"):
        select(two_rows, backbones=["third"])
