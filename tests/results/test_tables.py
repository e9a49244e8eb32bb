from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.results.records import Cell, Record, RecordStore, failed_record
from maskclip_bench.results.reference import load_references
from maskclip_bench.results.tables import (
    Table,
    TableCell,
    TableDeclaration,
    build_table,
    load_table,
    table_names,
    table_of_records,
)

Save = Callable[..., Record]

KNN = {"group": "kNN", "title": "val", "task": "knn/demo_objects", "metric": "top1_accuracy"}
PROBE = {"group": "Probe", "title": "val", "task": "linear_probe/demo_objects"}
PROBE["metric"] = "top1_accuracy"
MEAN = {"title": "mean", "average": "all"}


def declare(**changes: Any) -> TableDeclaration:
    values: dict[str, Any] = {
        "title": "A table",
        "world": "demo",
        "columns": [KNN],
        "rows": [{"name": "CLIP", "backbone": "clip"}, {"name": "SLIP", "backbone": "slip"}],
        "baseline": "clip",
    }
    return TableDeclaration.model_validate({**values, **changes})


def cells(table: Table, row: str) -> tuple[TableCell, ...]:
    return next(r.cells for r in table.rows if r.name == row)


def test_build__values_intervals_deltas_best(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("slip", hits=30)
    table = build_table(declare(), store)
    (clip,), (slip,) = cells(table, "CLIP"), cells(table, "SLIP")
    assert (clip.value, slip.value) == (0.25, 0.75)
    assert clip.origin == "synthetic"
    assert clip.delta is None
    assert slip.delta == 0.5
    assert slip.is_clear
    assert slip.best
    assert not clip.best
    assert slip.half_width is not None
    assert slip.half_width > 0


def test_build__difference_inside_the_noise_is_not_clear(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("slip", hits=11)
    (cell,) = cells(build_table(declare(), store), "SLIP")
    assert cell.delta == pytest.approx(0.025)
    assert cell.delta_interval is not None
    assert not cell.is_clear


def test_build__without_comparison(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("slip", hits=30)
    (cell,) = cells(build_table(declare(), store, compare=False), "SLIP")
    assert cell.delta == 0.5
    assert cell.delta_interval is None


def test_build__equal_as_printed_share_the_mark(save: Save, store: RecordStore) -> None:
    save("clip", hits=20)
    save("slip", hits=20)
    table = build_table(declare(), store)
    assert all(row.cells[0].best for row in table.rows)


def test_build__lower_is_better(save: Save, store: RecordStore) -> None:
    column = {**KNN, "metric": "error"}
    for backbone, hits in (("clip", 10), ("slip", 30)):
        save(backbone, hits=hits, metric="error", higher_is_better=False)
    table = build_table(declare(columns=[column]), store)
    assert cells(table, "CLIP")[0].best
    assert not cells(table, "SLIP")[0].best


def test_build__one_row_has_no_best(save: Save, store: RecordStore) -> None:
    save("clip")
    table = build_table(declare(), store)
    assert not table.rows[0].cells[0].best


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
    assert "Without any number here: SLIP." in table.notes


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


def test_build__seeds_are_averaged_and_paired(save: Save, store: RecordStore) -> None:
    for seed in range(3):
        save("clip", hits=10 + seed, seed=seed)
        save("slip", hits=20 + seed, seed=seed)
    table = build_table(declare(), store)
    (clip,), (slip,) = cells(table, "CLIP"), cells(table, "SLIP")
    assert clip.value == pytest.approx(11 / 40)
    assert clip.half_width == pytest.approx(1 / 40)  # standard deviation of 10, 11, 12 of 40
    assert clip.num_seeds == 3
    assert slip.delta_interval == pytest.approx((0.25, 0.25))
    assert any("over 3 training seeds" in note for note in table.notes)


def test_build__different_seeds_are_not_compared(save: Save, store: RecordStore) -> None:
    for seed in range(2):
        save("clip", hits=10 + seed, seed=seed)
    save("slip", hits=20)
    (cell,) = cells(build_table(declare(), store), "SLIP")
    assert cell.delta == pytest.approx(20 / 40 - 10.5 / 40)
    assert cell.delta_interval is None


def test_build__chosen_seeds(save: Save, store: RecordStore) -> None:
    save("clip", hits=10, seed=0)
    save("clip", hits=20, seed=1)
    rows = [{"name": "CLIP", "backbone": "clip", "seeds": [1]}]
    assert cells(build_table(declare(rows=rows), store), "CLIP")[0].value == 0.5


def test_build__failed_cell_is_no_score(save: Save, store: RecordStore) -> None:
    save("clip")
    cell = Cell(
        backbone="slip", protocol="knn", dataset="demo_objects", world="demo", cell_fingerprint="f"
    )
    store.save(failed_record(cell, RuntimeError("out of memory")))
    table = build_table(declare(), store)
    (failed,) = cells(table, "SLIP")
    assert failed.origin == "failed"
    assert failed.value is None
    assert any("SLIP (RuntimeError: out of memory)" in note for note in table.notes)


def test_build__metric_without_outcomes_has_no_test(save: Save, store: RecordStore) -> None:
    save("clip", hits=10, statistic="none")
    save("slip", hits=20, statistic="none")
    (cell,) = cells(build_table(declare(), store), "SLIP")
    assert cell.delta == 0.25
    assert cell.half_width is None
    assert cell.delta_interval is None


def test_build__demo_rows_never_enter_a_paper_table(save: Save, store: RecordStore) -> None:
    save("clip", world="demo")
    with pytest.raises(ConfigError, match=r"clip x knn/demo_objects was measured in the 'demo' wo"):
        build_table(declare(world="real"), store)


def test_build__one_preset_a_column(save: Save, store: RecordStore) -> None:
    save("clip", preset="dino_knn")
    save("slip", preset="tti_knn")
    expected = r"more than one preset \(clip: dino_knn v1, slip: tti_knn v1\)"
    with pytest.raises(ConfigError, match=expected):
        build_table(declare(), store)


def test_build__the_preset_of_the_column(save: Save, store: RecordStore) -> None:
    save("clip", preset="tti_knn")
    with pytest.raises(ConfigError, match="shows preset 'dino_knn', but clip was measured under"):
        build_table(declare(columns=[{**KNN, "preset": "dino_knn"}]), store)


def test_build__one_task_version_a_column(save: Save, store: RecordStore) -> None:
    save("clip", task_version=1)
    save("slip", task_version=2)
    with pytest.raises(ConfigError, match=r"more than one task version \(clip: 1, slip: 2\)"):
        build_table(declare(), store)


def test_build__one_budget_a_column(save: Save, store: RecordStore) -> None:
    save("clip", budget={"num_samples": 10})
    save("slip")
    with pytest.raises(ConfigError, match="more than one budget"):
        build_table(declare(), store)


def test_build__no_smoke_run_in_a_paper_table(save: Save, store: RecordStore) -> None:
    save("clip", world="real", budget={"num_samples": 10, "epochs": None})
    with pytest.raises(
        ConfigError, match=r"under the budget \{'num_samples': 10\}; a table of the"
    ):
        build_table(declare(world="real"), store)


def test_build__damaged_record(save: Save, store: RecordStore) -> None:
    save("clip")
    (store.root / "clip" / "knn__demo_objects.json").write_text("{")
    save("slip")
    table = build_table(declare(), store)
    assert [row.name for row in table.rows] == ["SLIP"]
    assert list((store.root / "clip").glob("knn__demo_objects.json.damaged-1"))


PUBLISHED = {
    "name": "CLIP (SLIP)",
    "published": [{"table": "SLIP README", "method": "CLIP", "encoder": "ViT-B/16", "epochs": 25}],
}
ZERO_SHOT = {
    "group": "Zero-shot",
    "title": "top-1",
    "task": "zero_shot_classification/imagenet",
    "metric": "top1_accuracy",
}


def paper_table(*rows: dict[str, Any]) -> TableDeclaration:
    measured = {"name": "CLIP", "backbone": "clip"}
    return declare(world="real", columns=[ZERO_SHOT], rows=[measured, *rows])


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
    assert any("SLIP README: github:facebookresearch/SLIP" in note for note in table.notes)
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


def test_build__best_within_each_group_of_published_rows() -> None:
    def row(name: str, method: str, epochs: int) -> dict[str, Any]:
        selector = {"table": "SLIP README", "method": method, "encoder": "ViT-B/16"}
        selector |= {"pretrain_data": "YFCC15M-V1", "epochs": epochs}  # type: ignore[dict-item]
        return {"name": name, "group": str(epochs), "published": [selector]}

    declaration = paper_table(
        row("CLIP 25", "CLIP", 25), row("SLIP 25", "SLIP", 25), row("SLIP 50", "SLIP", 50)
    )
    table = build_table(declaration, references=load_references())
    assert [row.cells[0].best for row in table.rows] == [False, True, False]


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


def test_load_table__unknown() -> None:
    with pytest.raises(UnknownNameError, match=r"No table 'imagenett'. Did you mean 'imagenet'"):
        load_table("imagenett")


def test_load_table__by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: T\nworld: demo\n"
        "columns: [{title: c, task: knn/demo_objects, metric: top1_accuracy}]\n"
        "rows: [{name: CLIP, backbone: clip}]\n"
    )
    assert load_table(str(path)).title == "T"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": [{"title": "x"}]}, "a column needs a task and a metric, or an average"),
        ({"columns": [{**KNN, "average": "all"}]}, "an average has no task"),
        ({"rows": [{"name": "x"}]}, "a row is measured .* or published, one of the two"),
        ({"rows": [{"name": "x", "backbone": "clip"}] * 2}, "a row stands twice in its group"),
        ({"baseline": "clap"}, "the baseline 'clap' is not among the rows"),
        ({"rows": [PUBLISHED], "baseline": None}, "published numbers cannot stand in a table of"),
    ],
)
def test_declaration__refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare(**changes)


def test_table_of_records__rows_and_columns_in_order(save: Save, store: RecordStore) -> None:
    save("slip")
    save("clip", "linear_probe/demo_objects", preset="p")
    save("clip")
    save("other", world="real")
    declaration = table_of_records(
        store.all(),
        title="T",
        world="demo",
        names={"clip": "CLIP"},
        tasks=["linear_probe/demo_objects"],
        baseline="clip",
    )
    assert [(row.name, row.backbone) for row in declaration.rows] == [
        ("CLIP", "clip"),
        ("slip", "slip"),
    ]
    assert [column.task for column in declaration.columns] == [
        "linear_probe/demo_objects",
        "knn/demo_objects",
    ]
    assert len(build_table(declaration, store).rows) == 2


def test_table_of_records__nothing_recorded(store: RecordStore) -> None:
    with pytest.raises(ConfigError, match=r"no record of the demo world yet. Make some"):
        table_of_records(store.all(), title="T", world="demo")


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
