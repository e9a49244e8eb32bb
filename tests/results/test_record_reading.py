from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskclip_bench import storage
from maskclip_bench.errors import DamagedFileError, DataError, StorageError
from maskclip_bench.results import record_reading
from maskclip_bench.results.record_model import MetricRecord, seal_of
from maskclip_bench.results.records import (
    Record,
    RecordStore,
)


def path_of(store: RecordStore) -> Path:
    return store.root / "clip" / "knn__demo_objects.json"


def change(store: RecordStore, edit: Callable[[dict[str, Any]], object], *, seal: bool) -> None:
    """Edit the stored record; without `seal` it becomes one of before there were seals."""
    values = json.loads(path_of(store).read_text())
    edit(values)
    if not seal:
        del values["seal"]
    path_of(store).write_text(json.dumps(values))


DAMAGE = {
    "empty": b"",
    "cut": b'{"schema_version": 1, "cell": {"backb',
    "not a record": b"[]",
    "without cell": b'{"schema_version": 1}',
    "binary": b"\x00\x01\xff\xfe",
    "not UTF-8": '{"schema_version": 1, "name": "\xe9"}'.encode("latin-1"),
    "deep": b'{"a":' * 100_000,
    "deep lists": b"[" * 100_000,
    "twice": b'{"schema_version": 1, "schema_version": 1}',
    "NaN": b'{"schema_version": NaN}',
    "infinite": b'{"schema_version": 1, "seconds": 1e999}',
    "long number": b'{"schema_version": ' + b"1" * 10_000 + b"}",
    "other schema": b'{"schema_version": "1"}',
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_load__what_is_damaged_is_set_aside_with_a_warning(
    save: Callable[..., Record],
    store: RecordStore,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save("clip")
    save("slip")
    path_of(store).write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"knn__demo_objects\.json is damaged: "):
        store.check(path_of(store))
    assert [record.row_id for record in store.all()] == ["slip"]
    assert "is damaged" in caplog.text
    assert "It is now knn__demo_objects.json.damaged-1." in caplog.text
    assert path_of(store).with_name("knn__demo_objects.json.damaged-1").read_bytes() == content
    assert store.load("clip", "knn", "demo_objects") is None
    again = save("clip", hits=30)
    assert store.load("clip", "knn", "demo_objects") == again


def test_load__set_aside_twice_keeps_both(save: Callable[..., Record], store: RecordStore) -> None:
    for content in ("one", "two"):
        save("clip")
        path_of(store).write_text(content)
        assert store.all() == []
    names = sorted(path.name for path in path_of(store).parent.glob("*.damaged-*"))
    assert names == ["knn__demo_objects.json.damaged-1", "knn__demo_objects.json.damaged-2"]


def test_load__any_single_bit_is_noticed(save: Callable[..., Record], store: RecordStore) -> None:
    save("clip")
    whole = path_of(store).read_bytes()
    for bit in range(0, 8 * len(whole), 211):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path_of(store).write_bytes(changed)
        with pytest.raises((DamagedFileError, DataError)):
            store.check(path_of(store), values=False)


def test_load__cut_at_any_length_is_noticed(
    save: Callable[..., Record], store: RecordStore
) -> None:
    save("clip")
    whole = path_of(store).read_bytes()
    for length in range(0, len(whole) - 2, 97):
        path_of(store).write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match="is damaged"):
            store.check(path_of(store), values=False)


@pytest.mark.parametrize("seal", [True, False], ids=["sealed", "made before seals"])
@pytest.mark.parametrize("value", [0.51, 0.500001, 44.5, None, "0.5x"])
def test_load__an_edited_digit_is_never_shown(
    save: Callable[..., Record], store: RecordStore, value: object, seal: bool
) -> None:
    save("clip", hits=20)

    def edit(values: dict[str, Any]) -> None:
        values["metrics"]["top1_accuracy"]["value"] = value

    change(store, edit, seal=seal)
    assert store.all() == []


def test_load__a_value_outside_of_its_interval(
    save: Callable[..., Record], store: RecordStore
) -> None:
    save("clip")
    change(store, lambda values: values["metrics"]["top1_accuracy"].update(low=0.9), seal=False)
    with pytest.raises(DamagedFileError, match=r"the value 0\.5 lies outside of its interval"):
        store.check(path_of(store))
    change(store, lambda values: values["metrics"]["top1_accuracy"].update(low=None), seal=True)
    with pytest.raises(ValueError, match="an interval has two ends"):
        MetricRecord(value=0.5, low=0.4)


def test_load__a_record_made_before_seals_is_accepted(
    save: Callable[..., Record], store: RecordStore
) -> None:
    sealed = save("clip")
    assert sealed.seal is not None
    change(store, lambda values: values["cell"].update(world="paper"), seal=False)
    (record,) = store.all()
    assert record.seal is None
    assert record.cell.world == "real"
    assert record.metrics == sealed.metrics


def test_load__a_new_seal_does_not_hide_a_value_from_verify(
    save: Callable[..., Record], store: RecordStore
) -> None:
    save("clip")

    def edit(values: dict[str, Any]) -> None:
        values["metrics"]["top1_accuracy"]["value"] = 0.51
        values["seal"] = seal_of(values)

    change(store, edit, seal=True)
    with pytest.raises(DamagedFileError, match=r"top1_accuracy = 0\.510000, .* give 0\.500000"):
        store.check(path_of(store))


def test_load__a_record_in_another_s_place(save: Callable[..., Record], store: RecordStore) -> None:
    save("clip")
    other = store.root / "slip" / "knn__demo_objects.json"
    other.parent.mkdir()
    other.write_bytes(path_of(store).read_bytes())
    with pytest.raises(DamagedFileError, match=r"it is the record of clip/knn__demo_objects\.json"):
        store.check(other)


def test_load__schema_of_the_future_is_left_alone(
    save: Callable[..., Record], store: RecordStore
) -> None:
    save("clip")

    def edit(values: dict[str, Any]) -> None:
        values.update(schema_version=99, something_new=1)
        values["seal"] = seal_of(values)

    change(store, edit, seal=True)
    with pytest.raises(DataError, match=r"schema version 99; this version reads up to 1\. Up"):
        store.load("clip", "knn", "demo_objects")
    assert path_of(store).exists()


def test_load__a_file_that_is_no_file(store: RecordStore) -> None:
    path_of(store).mkdir(parents=True)
    with pytest.raises(DamagedFileError, match="it is a folder"):
        store.check(path_of(store))
    path_of(store).rmdir()
    os.mkfifo(path_of(store))
    with pytest.raises(DamagedFileError, match="it is no regular file"):
        store.check(path_of(store))
    assert store.all() == []
    path_of(store).symlink_to("nowhere")
    assert store.load("clip", "knn", "demo_objects") is None


def test_load__far_too_large(
    save: Callable[..., Record], store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("clip")
    monkeypatch.setattr(record_reading, "MAX_RECORD_BYTES", 100)
    with pytest.raises(DamagedFileError, match=r"it has \d+ bytes, more than any record"):
        store.check(path_of(store))


def test_load__no_permission_is_one_sentence(
    save: Callable[..., Record], store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("clip")

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(StorageError, match=r"No permission to read: .*knn__demo_objects\.json"):
            store.all()
    assert len(store.all()) == 1


def test_load__a_folder_that_cannot_be_written_to(
    save: Callable[..., Record],
    store: RecordStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save("clip")
    path_of(store).write_text("{")

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        assert store.all() == []
    assert "It cannot be set aside here, and is left out." in caplog.text
    assert path_of(store).exists()


def test_load__a_record_that_another_process_replaces_is_read_again(
    save: Callable[..., Record], store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader saw the old JSON and its outcomes were gone; under the lock both are new."""
    save("clip", hits=10)
    check = RecordStore.check
    calls = []

    def check_once_too_early(self: RecordStore, path: Path, *, values: bool = True) -> Record:
        calls.append(path)
        if len(calls) == 1:
            raise record_reading.damaged(path, "it is missing")
        return check(self, path, values=values)

    monkeypatch.setattr(RecordStore, "check", check_once_too_early)
    assert [record.primary.value for record in store.all()] == [0.25]


def test_load__damaged_outcomes(save: Callable[..., Record], store: RecordStore) -> None:
    record = save("clip")
    file = next((store.root / "clip").glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match=r"parquet is damaged: its hash is not the one in"):
        store.outcomes(record)
    assert store.all() == []
    assert save("clip") == store.load("clip", "knn", "demo_objects")


def test_load__outcomes_gone(save: Callable[..., Record], store: RecordStore) -> None:
    record = save("clip")
    next((store.root / "clip").glob("*.parquet")).unlink()
    with pytest.raises(DamagedFileError, match=r"parquet is damaged: it is missing"):
        store.outcomes(record)
    assert store.load("clip", "knn", "demo_objects") is None


def test_load__outcomes_that_are_no_outcomes(
    save: Callable[..., Record], store: RecordStore
) -> None:
    record = save("clip")
    file = next((store.root / "clip").glob("*.parquet"))
    file.write_bytes(b"PAR1 no table PAR1")
    digest = storage.sha256_file(file)
    with pytest.raises(DamagedFileError, match="parquet is damaged"):
        store.outcomes(record.model_copy(update={"outcomes_sha256": digest}))
