from __future__ import annotations

from collections.abc import Callable

import pytest

from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.reference import load_references
from maskclip_bench.results.tables import (
    build_table,
    load_table,
    table_names,
)
from tests.results.table_examples import (
    KNN,
    MEAN,
    PROBE,
    PUBLISHED,
    ZERO_SHOT,
    cells,
    declare,
    paper_table,
)

Save = Callable[..., Record]


def test_build__average_with_a_missing_cell_is_missing(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("clip", "linear_probe/demo_objects", hits=30, preset="p")
    save("slip", hits=10)
    table = build_table(declare(columns=[KNN, PROBE, MEAN]), store)
    assert cells(table, "CLIP")[2].value == 0.5
    assert cells(table, "SLIP")[1].origin == "missing"
    assert cells(table, "SLIP")[2].value is None


def test_build__average_counts_columns_that_no_row_has(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    table = build_table(declare(columns=[KNN, PROBE, MEAN]), store)
    assert [column.title for column in table.columns] == ["val"]
    assert "Not measured in any row: Probe val, mean." in table.notes


def test_build__average_of_a_group(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("clip", "linear_probe/demo_objects", hits=30, preset="p")
    average = {"group": "kNN", "title": "mean", "average": "group"}
    table = build_table(declare(columns=[KNN, average, PROBE]), store)
    assert cells(table, "CLIP")[1].value == 0.25


def test_build__empty_rows_are_named(save: Save, store: RecordStore) -> None:
    save("clip")
    table = build_table(declare(), store)
    assert [row.name for row in table.rows] == ["CLIP"]
    assert "Not measured here, so left out: SLIP." in table.notes


def test_build__nothing_at_all(store: RecordStore) -> None:
    assert build_table(declare(), store).is_empty
    assert build_table(declare()).is_empty


def test_build__chance_row_on_demand(save: Save, store: RecordStore) -> None:
    save("clip", chance_level=0.1)
    assert [row.name for row in build_table(declare(), store).rows] == ["CLIP"]
    table = build_table(declare(columns=[KNN, MEAN]), store, chance=True)
    assert table.rows[0].name == "chance"
    assert [cell.value for cell in table.rows[0].cells] == [0.1, 0.1]
    assert table.rows[0].cells[0].origin == "chance"


def test_build__published_rows_on_demand(save: Save, store: RecordStore) -> None:
    save("clip", ZERO_SHOT["task"], world="real", preset="slip_7_prompts")
    declaration = paper_table(PUBLISHED)
    assert [row.name for row in build_table(declaration, store).rows] == ["CLIP"]
    table = build_table(declaration, store, references=load_references())
    (cell,) = cells(table, "CLIP (SLIP)")
    assert cell.origin == "published"
    assert cell.value == pytest.approx(0.376)
    assert cell.delta is None  # published numbers are not tested against ours
    assert cells(table, "CLIP")[0].origin == "measured"
    assert (
        "† Published, not measured here: Mu et al. 2022 (SLIP), README (read in "
        "github:facebookresearch/SLIP README.md)." in table.notes
    )
    assert table.rows[1].label == "CLIP (SLIP) †"


def test_build__published_and_measured_share_the_preset(save: Save, store: RecordStore) -> None:
    save("clip", ZERO_SHOT["task"], world="real", preset="clip_80_prompts")
    with pytest.raises(
        ConfigError, match=r"published\): slip_7_prompts.*\. Show the table without pub"
    ):
        build_table(paper_table(PUBLISHED), store, references=load_references())


def test_build__silent_source_is_said(store: RecordStore) -> None:
    row = {"name": "M", "published": [{"table": "MaskCLIP T1", "method": "CLIP"}]}
    table = build_table(paper_table(row), references=load_references())
    assert "Preset not stated by the source: Zero-shot top-1 (all rows)." in table.notes


def test_build__misspelt_selector() -> None:
    row = {"name": "M", "published": [{"table": "MaskCLIP T7", "method": "CLIP"}]}
    with pytest.raises(UnknownNameError, match="No published table 'MaskCLIP T7'"):
        build_table(paper_table(row), references=load_references())


@pytest.mark.parametrize("name", [name for name in table_names() if not name.startswith("demo")])
def test_shipped__every_published_number_is_found(name: str) -> None:
    table = build_table(load_table(name), references=load_references())
    for row in table.rows:
        assert any(cell.value is not None for cell in row.cells), row.name
    assert len(table.rows) == sum(1 for row in load_table(name).rows if row.published)


def test_dense__measured_cells_stand_beside_published_ones(save: Save, store: RecordStore) -> None:
    """Every column of the declared table takes the records that its task makes."""
    declaration = load_table("dense")
    ours, baseline = "maskclip_vit-b-16_yfcc15m", "clip_vit-b-16_yfcc15m"
    for column in declaration.columns:
        for backbone, hits in ((baseline, 10), (ours, 20)):
            if column.metric != "mask_ap":  # stands in the record of box_ap
                save(
                    backbone,
                    column.task,
                    hits,
                    world="real",
                    metric=column.metric,
                    preset=column.preset,
                    budget={},
                )
    table = build_table(declaration, store, references=load_references())
    shown = [column.title for column in table.columns]
    assert shown == ["UperNet", "linear", "APᵇ", "APᵐ"]
    assert [cell.value for cell in cells(table, "MaskCLIP")[:3]] == [0.5, 0.5, 0.5]
    assert [cell.value for cell in cells(table, "MaskCLIP (DetailCLIP)")] == pytest.approx(
        [0.475, 0.363, 0.458, 0.409]
    )
    assert cells(table, "MaskCLIP")[0].delta == 0.25
    assert any(note.startswith("Preset not stated by the source") for note in table.notes)
    assert len(build_table(declaration, store).rows) == 2


def test_dense__a_recipe_of_its_own_is_refused(save: Save, store: RecordStore) -> None:
    save(
        "maskclip_vit-b-16_yfcc15m",
        "segmentation/ade20k",
        world="real",
        metric="mean_iou",
        preset="bootmae_upernet_160k+own-12345678",
    )
    with pytest.raises(ConfigError, match=r"was measured under 'bootmae_upernet_160k\+own-1234"):
        build_table(load_table("dense"), store)
