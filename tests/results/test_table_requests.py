from __future__ import annotations

from collections.abc import Callable

import pytest

from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.table_requests import declared_table, tables_of

Save = Callable[..., Record]


def test_declared__another_baseline(save: Save, store: RecordStore) -> None:
    clip, slip = "clip_vit-demo_demo", "slip_vit-demo_demo"
    for backbone in (clip, slip):
        save(backbone, "zero_shot_classification/demo_objects")
    assert declared_table("demo", store).baseline == clip
    table = declared_table("demo", store, baseline=slip)
    assert table.rows[0].cells[0].delta == 0.0
    assert table.rows[1].cells[0].delta is None
    with pytest.raises(ConfigError, match="'x' is not a measured row of the table 'demo'"):
        declared_table("demo", store, baseline="x")
    with pytest.raises(UnknownNameError, match="No table 'nothing'"):
        declared_table("nothing", store)


def test_tables_of__rows_in_the_order_that_was_asked_for(save: Save, store: RecordStore) -> None:
    for backbone in ("a", "b", "c"):
        save(backbone)
    (table,) = tables_of(store, ["c", "*"], [], names={"c": "C"}, chance=False)
    assert [row.name for row in table.rows] == ["C", "a", "b"]
    assert table.baseline == "c"


def test_tables_of__nothing_named_and_nothing_that_fits(save: Save, store: RecordStore) -> None:
    save("a")
    save("b", "linear_probe/demo_objects", preset="p")
    with pytest.raises(ConfigError, match="Say which table"):
        tables_of(store, [], [])
    with pytest.raises(ConfigError, match="No record fits both the rows and the tasks"):
        tables_of(store, ["a"], ["linear_probe/*"])
