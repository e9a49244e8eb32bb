from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.report import comparisons
from maskclip_bench.report.comparisons import columns_of, pairs_of
from maskclip_bench.report.selection import select
from maskclip_bench.results.paired import holm, paired_test
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.sample_tests import compare_records
from tests.report.measurements import MADE


def test_columns__titles_of_the_records(two_rows: RecordStore) -> None:
    columns = columns_of(select(two_rows))
    assert [column["task"] for column in columns] == [
        "knn/objects",
        "retrieval/captions",
        "linear_segmentation/scenes",
        "detection/things",
    ]
    assert columns[0]["group"] == "Knn"
    assert columns[0]["chance"] == pytest.approx(1 / 3)


def test_pairs__the_paired_test_of_the_records(two_rows: RecordStore, tmp_path: Path) -> None:
    selection = select(two_rows)
    columns = columns_of(selection)
    pairs = pairs_of(selection, columns, two_rows, tmp_path / "out")
    (found,) = pairs.values()
    assert list(pairs) == ["first|second"]
    records = [two_rows.load(row, "knn", "objects") for row in ("first", "second")]
    tables = [two_rows.outcomes(record) for record in records if record]
    expected = paired_test(*tables, "top1_accuracy")
    assert found[0] is not None
    assert found[0]["difference"] == expected.difference == pytest.approx(-6 / 24)
    assert found[0]["p_value"] == expected.p_value
    assert found[3] is not None
    assert found[3]["p_value"] is None  # an AP has no outcomes to pair
    tested = [test for test in found if test and test["p_value"] is not None]
    assert [test["corrected_p_value"] for test in tested] == holm([t["p_value"] for t in tested])


def test_pairs__kept_until_a_record_changes(
    two_rows: RecordStore,
    save: Callable[..., Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selection = select(two_rows)
    columns = columns_of(selection)
    first = pairs_of(selection, columns, two_rows, tmp_path)
    tests = []
    monkeypatch.setattr(
        comparisons, "compare_records", lambda *a: tests.append(a) or compare_records(*a)
    )
    assert pairs_of(selection, columns, two_rows, tmp_path) == first
    assert tests == []
    save("second", "knn/objects", MADE["knn/objects"](5))
    changed = select(two_rows)
    again = pairs_of(changed, columns, two_rows, tmp_path)
    assert len(tests) == 1
    assert again["first|second"][0] != first["first|second"][0]
    assert again["first|second"][1] == first["first|second"][1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 99, "tests": {}}'])
def test_pairs__a_damaged_cache_is_made_again(
    content: str, two_rows: RecordStore, tmp_path: Path
) -> None:
    selection = select(two_rows)
    columns = columns_of(selection)
    (tmp_path / "data").mkdir()
    (tmp_path / comparisons.CACHE).write_text(content)
    pairs_of(selection, columns, two_rows, tmp_path)
    assert json.loads((tmp_path / comparisons.CACHE).read_text())["version"] == comparisons.VERSION


def test_pairs__by_seed_where_both_have_the_same(
    store: RecordStore, save: Callable[..., Record], tmp_path: Path
) -> None:
    for seed in range(3):
        save("first", "knn/objects", MADE["knn/objects"](6 + seed), seed=seed)
        save("second", "knn/objects", MADE["knn/objects"](2 + seed), seed=seed)
    selection = select(store)
    (found,) = pairs_of(selection, columns_of(selection), store, tmp_path).values()
    assert found[0] is not None
    assert found[0]["covers"] == "seeds"
    assert found[0]["num_samples"] == 3


def test_pairs__one_seed_against_several_has_no_test(
    store: RecordStore, save: Callable[..., Record], tmp_path: Path
) -> None:
    for seed in range(2):
        save("first", "knn/objects", MADE["knn/objects"](6), seed=seed)
    save("second", "knn/objects", MADE["knn/objects"](2))
    selection = select(store)
    (found,) = pairs_of(selection, columns_of(selection), store, tmp_path).values()
    assert found[0] is not None
    assert found[0]["p_value"] is None


def test_pairs__other_presets_are_not_compared(
    store: RecordStore, save: Callable[..., Record], tmp_path: Path
) -> None:
    import dataclasses

    save("first", "knn/objects", MADE["knn/objects"](6))
    other = dataclasses.replace(MADE["knn/objects"](2), preset="two")
    save("second", "knn/objects", other)
    selection = select(store)
    (found,) = pairs_of(selection, columns_of(selection), store, tmp_path).values()
    assert found == [None]
