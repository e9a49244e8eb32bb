from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.results.record_sets import (
    COLUMNS,
    cell_name,
    differences,
    export_metrics,
    merge,
    metric_table,
    show_record,
)
from maskclip_bench.results.records import Cell, Record, RecordStore, failed_record

Save = Callable[..., Record]


def failure(backbone: str = "clip") -> Record:
    cell = Cell(
        backbone=backbone,
        protocol="knn",
        dataset="demo_objects",
        world="demo",
        cell_fingerprint="other",
    )
    return failed_record(cell, ValueError("odd"))


@pytest.fixture
def other(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "other")


def copy(source: RecordStore, target: RecordStore) -> None:
    for record in source.all():
        target.save(record, source.outcomes(record) if record.outcomes_file else None)


def test_metric_table__one_line_a_metric_and_one_a_failure(save: Save, store: RecordStore) -> None:
    save("clip", hits=10, budget={"limit": 20})
    store.save(failure("slip"))
    table = metric_table(store.all())
    assert tuple(table.columns) == COLUMNS
    assert table["value"].tolist()[0] == 0.25
    assert table["limit"].tolist()[0] == 20
    assert table["status"].tolist() == ["ok", "failed"]
    assert table["value"].isna().tolist() == [False, True]
    assert metric_table([]).empty


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_export__can_be_read_back(
    save: Save, store: RecordStore, tmp_path: Path, suffix: str
) -> None:
    save("clip", hits=10)
    path = export_metrics(store.all(), tmp_path / f"new/numbers.{suffix}")
    read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[suffix]
    table = read(path)
    assert table["value"].tolist() == [0.25]
    assert list(table.columns) == list(COLUMNS)


def test_export__no_formula_in_any_column(save: Save, store: RecordStore, tmp_path: Path) -> None:
    record = save("clip", preset="=1+1").model_copy(update={"provenance": {"time": "@SUM(1)"}})
    text = export_metrics([record], tmp_path / "a.csv").read_text()
    assert ",'=1+1," in text and ",'@SUM(1)," in text


def test_export__of_another_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'a\.xlsx': export writes \.csv, \.json or \.parquet"):
        export_metrics([], tmp_path / "a.xlsx")


def test_differences__of_every_kind(save: Save, store: RecordStore, other: RecordStore) -> None:
    for backbone in ("same", "only", "value", "inputs", "status"):
        save(backbone, hits=10)
    copy(store, other)
    save("value", hits=11)
    save("inputs", hits=10, fingerprint="g")
    save("more", hits=10)
    for path in (other.root / "only").iterdir():
        path.unlink()
    (other.root / "status/knn__demo_objects.json").unlink()
    other.save(failure("status"))
    found = {item.row_id: item for item in differences(store, other)}
    assert {name: item.change for name, item in found.items()} == {
        "same": "same",
        "only": "only first",
        "more": "only first",
        "value": "value",
        "inputs": "inputs",
        "status": "status",
    }
    assert (found["value"].first, found["value"].second) == (11 / 40, 10 / 40)
    assert differences(other, store)[1].change == "only second"


def test_differences__name_what_was_measured_from_other(
    save: Save, store: RecordStore, other: RecordStore
) -> None:
    record = save("clip")
    outcomes = store.outcomes(record)
    for target, data in ((store, "1"), (other, "2")):
        changed = record.model_copy(update={"fingerprints": {"data": data, "weights": "w"}})
        target.save(changed, outcomes)
    (item,) = differences(store, other)
    assert (item.change, item.parts) == ("inputs", ("data",))


def test_differences__how_far_the_metrics_are_apart(
    save: Save, store: RecordStore, other: RecordStore
) -> None:
    record = save("clip", hits=10)
    copy(store, other)
    save("clip", hits=12)
    (item,) = differences(store, other)
    assert item.metric in record.metrics
    assert item.largest == pytest.approx(2 / 40)
    assert item.is_within(0.051)
    assert not item.is_within(0.049)
    other.save(failure("clip"))
    (item,) = differences(store, other)
    assert not item.is_within(1.0)


def test_differences__a_metric_that_only_one_has_is_never_within(
    save: Save, store: RecordStore, other: RecordStore
) -> None:
    record = save("clip", hits=10)
    metrics = {**record.metrics, "further": record.primary}
    other.save(record.model_copy(update={"metrics": metrics}), store.outcomes(record))
    (item,) = differences(store, other)
    assert (item.metric, item.change) == ("further", "value")
    assert not item.is_within(1.0)


def test_merge__copies_verified_records_once(
    save: Save, store: RecordStore, other: RecordStore
) -> None:
    record = save("clip", hits=10)
    save("slip", hits=20)
    done = merge(store, other)
    assert done.copied == ["clip/knn/demo_objects", "slip/knn/demo_objects"]
    again = merge(store, other)
    assert (again.copied, len(again.same)) == ([], 2)
    loaded = other.load("clip", "knn", "demo_objects")
    assert loaded is not None
    assert other.outcomes(loaded).equals(store.outcomes(record))
    assert all(item.change == "same" for item in differences(store, other))


def other_bytes(store: RecordStore, record: Record) -> Record:
    """The same record with the same outcomes, as another version of pandas might write them."""
    return store._save(record, store.outcomes(record).to_parquet(None, compression="gzip"))


def test_differences__other_bytes_of_equal_outcomes_are_the_same(
    save: Save, store: RecordStore, other: RecordStore
) -> None:
    record = save("clip", hits=10)
    copy(store, other)
    written = other_bytes(other, record)
    assert written.outcomes_sha256 != record.outcomes_sha256
    assert differences(store, other)[0].change == "same"
    outcomes = store.outcomes(record)
    swapped = outcomes["top1_accuracy"].to_numpy().copy()
    swapped[[0, -1]] = swapped[[-1, 0]]  # equal mean
    other.save(record, outcomes.assign(top1_accuracy=swapped))
    assert differences(store, other)[0].change == "outcomes"


def test_merge__outcomes_are_copied_byte_by_byte(
    save: Save, store: RecordStore, other: RecordStore
) -> None:
    record = other_bytes(store, save("clip", hits=10))
    merge(store, other)
    loaded = other.load("clip", "knn", "demo_objects")
    assert loaded is not None
    assert loaded.outcomes_sha256 == record.outcomes_sha256
    assert loaded.seal == record.seal


def test_merge__another_score_stands_unless_it_is_replaced(
    save: Save, store: RecordStore, other: RecordStore
) -> None:
    save("clip", hits=10)
    copy(store, other)
    save("clip", hits=30)
    assert merge(store, other).kept == ["clip/knn/demo_objects"]
    assert differences(store, other)[0].change == "value"
    assert merge(store, other, replace=True).replaced == ["clip/knn/demo_objects"]
    assert differences(store, other)[0].change == "same"


def test_merge__a_score_replaces_a_failure_and_never_the_other_way(
    save: Save, store: RecordStore, other: RecordStore
) -> None:
    save("clip", hits=10)
    other.save(failure())
    assert merge(other, store, replace=True).kept == ["clip/knn/demo_objects"]
    assert merge(store, other).copied == ["clip/knn/demo_objects"]
    assert other.all()[0].status == "ok"


def test_merge__damaged_records_are_not_copied(
    save: Save, store: RecordStore, other: RecordStore
) -> None:
    save("clip")
    (path,) = store.paths()
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert merge(store, other).copied == []
    assert other.paths() == []


def test_merge__into_itself(save: Save, store: RecordStore) -> None:
    save("clip")
    with pytest.raises(DataError, match="cannot be merged into itself"):
        merge(store, RecordStore(store.root))


def test_show__is_what_the_file_holds(save: Save, store: RecordStore) -> None:
    record = save("clip")
    assert cell_name(record) == "clip/knn/demo_objects"
    assert show_record(record) == json.loads(store.paths()[0].read_text())
