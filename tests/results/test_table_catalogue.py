from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.tables import (
    build_table,
    load_table,
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
