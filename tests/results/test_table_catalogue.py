from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.results.records import Cell, Record, RecordStore, failed_record
from maskclip_bench.results.tables import (
    build_table,
    choose_records,
    load_table,
    recorded_tables,
    table_of_records,
)

Save = Callable[..., Record]


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


def test_table_of_records__titles_labels_and_columns_are_the_record_s(
    save: Save, store: RecordStore
) -> None:
    record = save("clip", "my_own_protocol/birds")
    (column,) = table_of_records([record], title="T", world="demo").columns
    assert (column.group, column.title) == ("My own protocol", "birds\ntop1 accuracy")
    labelled = record.metrics["top1_accuracy"].model_copy(update={"label": "top-1"})
    newer = record.model_copy(
        update={
            "protocol_title": "Mine",
            "table_columns": ["top1_accuracy"],
            "metrics": {"top1_accuracy": labelled},
        }
    )
    for records in ([newer], [record, newer], [newer, record]):
        (column,) = table_of_records(records, title="T", world="demo").columns
        assert (column.group, column.title) == ("Mine", "birds\ntop-1")


def test_table_of_records__limited_runs_are_shown_and_said(save: Save, store: RecordStore) -> None:
    save("clip", world="real", budget={"limit": 20})
    table = build_table(table_of_records(store.all(), title="T", world="real"), store)
    assert table.rows[0].cells[0].value == 0.5
    assert table.notes[0].startswith("Limited run (limit 20): a check of the setup")


def test_choose_records__names_patterns_and_what_is_not_there(
    save: Save, store: RecordStore
) -> None:
    save("clip")
    save("slip", "linear_probe/demo_objects", preset="p")
    records = store.all()
    assert choose_records(records) == records
    assert [r.row_id for r in choose_records(records, ["c*"])] == ["clip"]
    assert [r.task for r in choose_records(records, tasks=["*/demo_objects"])] == [
        "knn/demo_objects",
        "linear_probe/demo_objects",
    ]
    assert choose_records(records, ["clip"], ["linear_probe/*"]) == []
    with pytest.raises(UnknownNameError, match=r"No recorded row 'clipp'. Did you mean 'clip'"):
        choose_records(records, ["clipp"])
    with pytest.raises(UnknownNameError, match=r"No recorded task 'knn/birds'"):
        choose_records(records, tasks=["knn/birds"])


def test_table_of_records__rows_of_one_display_name_are_told_apart(
    save: Save, store: RecordStore
) -> None:
    save("clip")
    save("slip")
    names = {"clip": "Mine", "slip": "Mine"}
    declaration = table_of_records(store.all(), title="T", world="demo", names=names)
    assert [row.name for row in declaration.rows] == ["Mine (clip)", "Mine (slip)"]


def test_table_of_records__a_task_that_failed_everywhere_has_a_column(store: RecordStore) -> None:
    cell = Cell(
        backbone="clip", protocol="knn", dataset="birds", world="real", cell_fingerprint="f"
    )
    store.save(failed_record(cell, ValueError("odd")))
    (table,) = recorded_tables(store.all(), store)
    assert table.columns[0].title == "birds"
    assert table.rows[0].cells[0].origin == "failed"
    assert any("ValueError: odd" in note for note in table.notes)


def test_recorded_tables__one_a_world_first_row_is_the_baseline(
    save: Save, store: RecordStore
) -> None:
    for backbone, world in (("slip", "demo"), ("clip", "demo"), ("mae", "real")):
        save(backbone, world=world)
    real, demo = recorded_tables(store.all(), store, names={"slip": "SLIP", "clip": "CLIP"})
    assert (real.world, demo.world) == ("real", "demo")
    assert [row.name for row in demo.rows] == ["chance", "SLIP", "CLIP"]
    assert demo.baseline == "slip"
    assert real.baseline is None
    (other,) = recorded_tables(store.all(backbones=["slip", "clip"]), store, baseline="slip")
    assert other.baseline == "slip"
    assert recorded_tables([], store) == []
    with pytest.raises(ConfigError, match=r"The baseline 'mae' is not among the rows: clip, slip"):
        recorded_tables(store.all(backbones=["slip", "clip"]), store, baseline="mae")


def test_recorded_tables__only_the_seeds_that_were_asked_for(
    save: Save, store: RecordStore
) -> None:
    for seed, hits in ((0, 10), (1, 30)):
        save("clip", hits=hits, seed=seed)
    (both,) = recorded_tables(store.all(), store, chance=False)
    (one,) = recorded_tables(store.all(), store, chance=False, seeds={"clip": [1]})
    assert both.rows[0].cells[0].value == 0.5
    assert one.rows[0].cells[0].value == 0.75
