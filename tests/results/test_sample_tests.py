from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.errors import DamagedFileError
from maskclip_bench.results import sample_tests
from maskclip_bench.results.paired import Comparison, paired_test
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.sample_tests import compare_all, compare_records


@pytest.fixture
def num_tests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the tests that are made; none is known yet."""
    made: list[int] = []

    def counted(*args: object, **options: object) -> Comparison:
        made.append(1)
        return paired_test(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sample_tests, "paired_test", counted)
    monkeypatch.setattr(sample_tests, "_MADE", {})
    return made


def test_compare_records__equals_the_paired_test_in_both_orders_and_is_made_once(
    save: Callable[..., Record], store: RecordStore, num_tests: list[int]
) -> None:
    clip, slip = save("clip", hits=20), save("slip", hits=29)
    metric = "top1_accuracy"
    for first, second in ((clip, slip), (slip, clip), (clip, slip)):
        plain = paired_test(store.outcomes(first), store.outcomes(second), metric)
        assert compare_records(RecordStore(store.root), first, second, metric) == plain
    assert len(num_tests) == 1


def test_compare_records__a_record_measured_again_is_tested_again(
    save: Callable[..., Record], store: RecordStore, num_tests: list[int]
) -> None:
    clip, slip = save("clip", hits=20), save("slip", hits=29)
    before = compare_records(store, slip, clip, "top1_accuracy")
    slip = save("slip", hits=12)
    after = compare_records(store, slip, clip, "top1_accuracy")
    assert before is not None
    assert after is not None
    assert (before.difference, after.difference) == pytest.approx((9 / 40, -8 / 40))
    assert len(num_tests) == 2


def test_compare_records__equal_outcomes(
    save: Callable[..., Record], store: RecordStore, num_tests: list[int]
) -> None:
    comparison = compare_records(store, save("clip"), save("slip"), "top1_accuracy")
    assert comparison is not None
    assert (comparison.difference, comparison.p_value) == (0.0, 1.0)


def test_compare_records__damage_after_the_test_is_seen(
    save: Callable[..., Record], store: RecordStore, num_tests: list[int]
) -> None:
    clip, slip = save("clip"), save("slip", hits=29)
    compare_records(store, clip, slip, "top1_accuracy")
    file = next(Path(store.root / "slip").glob("*.parquet"))
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(DamagedFileError, match="its hash"):
        compare_records(store, clip, slip, "top1_accuracy")


def test_compare_records__outcomes_that_do_not_tell(
    save: Callable[..., Record], store: RecordStore
) -> None:
    clip, slip = save("clip"), save("slip")
    metric = slip.metrics["top1_accuracy"]
    without = slip.model_copy(update={"outcomes_file": None})
    other = metric.model_copy(update={"statistic": "mean_per_class"})
    of_classes = slip.model_copy(update={"metrics": {"top1_accuracy": other}})
    for record in (without, of_classes):
        assert compare_records(store, clip, record, "top1_accuracy") is None


def test_compare_all__what_is_asked_for_later_is_made_already(
    save: Callable[..., Record], store: RecordStore, num_tests: list[int]
) -> None:
    rows = [save(name, hits=hits) for name, hits in (("clip", 20), ("slip", 29), ("mae", 24))]
    for seed in (0, 1):
        save("seeds", seed=seed)
    save("alone", "knn/other")
    assert compare_all(store, store.all()) == len(num_tests) == 3
    for first in rows:
        for second in rows:
            if first is not second:
                assert compare_records(store, first, second, "top1_accuracy") is not None
    assert len(num_tests) == 3


def test_compare_all__ends_where_it_is_told_to_and_passes_over_what_cannot_be_tested(
    save: Callable[..., Record], store: RecordStore, num_tests: list[int]
) -> None:
    save("clip"), save("slip", hits=3), save("mae", hits=9)
    asked: list[int] = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_all(store, store.all(), between=stop)
    assert len(num_tests) == 1
    records = store.all()
    for file in store.root.glob("slip/*.parquet"):
        file.unlink()
    assert compare_all(store, records) == 1
    assert compare_all(store, []) == 0
