from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from maskclip_bench import storage
from maskclip_bench.errors import ConfigError, DamagedFileError, DataError, StorageError
from maskclip_bench.results import record_reading
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.record_model import MetricRecord, seal_of
from maskclip_bench.results.records import (
    Cell,
    Record,
    RecordStore,
    failed_record,
    measured_record,
    plain,
    row_id,
)

CELL = Cell(
    backbone="clip", protocol="knn", dataset="demo_objects", world="demo", cell_fingerprint="f"
)


def failure(message: str = "boom") -> ValueError:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


def test_row_id__names_the_seed() -> None:
    assert row_id("clip") == "clip"
    assert row_id("clip", 2) == "clip__seed2"


def test_save__reads_back_whole(save: Callable[..., Record], store: RecordStore) -> None:
    record = save("clip", hits=10)
    metric = record.primary
    assert metric.value == 0.25
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low <= 0.25 <= metric.high
    assert metric.half_width == pytest.approx(max(metric.high - 0.25, 0.25 - metric.low))
    assert metric.interval == "wilson"
    assert (metric.num_samples, metric.num_groups) == (40, 10)
    assert store.load("clip", "knn", "demo_objects") == record
    assert store.all() == [record]
    assert store.all(backbones=["clip"], tasks={"knn/demo_objects"}) == [record]
    assert store.all(backbones=["slip"]) == store.all(tasks=["knn/other"]) == []
    assert store.outcomes(record)["top1_accuracy"].sum() == 10
    assert (store.root / "clip" / "knn__demo_objects.json").is_file()


def test_load__absent(store: RecordStore) -> None:
    assert store.load("clip", "knn", "demo_objects") is None
    assert store.all() == []


def test_recorded__only_the_same_fingerprint(
    save: Callable[..., Record], store: RecordStore
) -> None:
    record = save("clip", fingerprint="f")
    assert store.recorded(record.cell) == record
    assert store.recorded(record.cell.model_copy(update={"cell_fingerprint": "g"})) is None


def test_recorded__not_a_failure(store: RecordStore) -> None:
    store.save(failed_record(CELL, failure()))
    assert store.recorded(CELL) is None


def test_save__replaces_and_leaves_one_outcomes_file(
    save: Callable[..., Record], store: RecordStore
) -> None:
    save("clip", hits=10)
    save("clip", hits=30)
    assert [record.primary.value for record in store.all()] == [0.75]
    assert len(list((store.root / "clip").glob("*.parquet"))) == 1


def test_failed__keeps_the_traceback_and_no_score(store: RecordStore) -> None:
    record = store.save(failed_record(CELL, failure("no such layer")))
    assert record.status == "failed"
    assert record.metrics == {}
    assert record.error is not None
    assert record.error.type == "ValueError"
    assert "raise ValueError(message)" in record.error.traceback
    with pytest.raises(DataError, match="has no score: it failed with ValueError: no such layer"):
        _ = record.primary
    with pytest.raises(DataError, match="has no outcomes: its status is 'failed'"):
        store.outcomes(record)


def test_failed__never_replaces_a_score_of_the_same_cell(
    save: Callable[..., Record], store: RecordStore
) -> None:
    good = save("clip", fingerprint="f")
    assert store.save(failed_record(CELL, failure())) == good
    assert store.all() == [good]


def test_failed__without_a_look_at_the_data_replaces_only_other_weights(
    store: RecordStore,
) -> None:
    outcomes = pd.DataFrame({"sample_id": ["a"], "group": ["a"], "top1": [1.0]})
    measurement = Measurement(
        metrics={"top1": Metric(1.0)}, primary_metric="top1", outcomes=outcomes, preset="p"
    )
    parts = {"weights": "w", "data": "d"}
    good = store.save(measured_record(CELL, measurement, fingerprints=parts), outcomes)
    unread = CELL.model_copy(update={"cell_fingerprint": "unread"})
    same = failed_record(unread, failure(), fingerprints={"weights": "w"})
    assert store.save(same) == good
    other = failed_record(unread, failure(), fingerprints={"weights": "other"})
    assert store.save(other).status == "failed"


def test_failed__replaces_a_score_of_other_weights(
    save: Callable[..., Record], store: RecordStore
) -> None:
    save("clip", fingerprint="old")
    store.save(failed_record(CELL, failure()))
    assert [record.status for record in store.all()] == ["failed"]
    assert not list((store.root / "clip").glob("*.parquet"))


def test_failed__replaces_a_damaged_record(save: Callable[..., Record], store: RecordStore) -> None:
    save("clip", fingerprint="f")
    (store.root / "clip" / "knn__demo_objects.json").write_text("{")
    assert store.save(failed_record(CELL, failure())).status == "failed"


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


def test_open__removes_what_killed_processes_left(
    save: Callable[..., Record], store: RecordStore
) -> None:
    save("clip")
    left = store.root / "clip" / ".x.json.0123abcd-5-0123abcd.tmp"
    left.touch()
    os.utime(left, (0, 0))
    RecordStore(store.root)
    assert not left.exists()


def test_measured_record__titles_labels_and_columns() -> None:
    table = pd.DataFrame({"sample_id": ["a"], "group": ["a"], "top1": [1.0], "top5": [1.0]})
    measurement = Measurement(
        {"top1": Metric(1.0, label="top-1"), "top5": Metric(1.0)}, "top1", table, "p"
    )
    record = measured_record(
        CELL,
        measurement,
        protocol_title="kNN",
        labels={"top5": "top-5"},
        table_columns=["top1", "top5", "absent"],
    )
    assert record.protocol_title == "kNN"
    assert record.table_columns == ["top1", "top5"]
    assert [metric.label for metric in record.metrics.values()] == ["top-1", "top-5"]
    with pytest.raises(ValueError, match="table_columns names"):
        Record.model_validate({**record.model_dump(), "table_columns": ["absent"]})


def test_measured_record__the_value_is_that_of_the_outcomes() -> None:
    table = pd.DataFrame({"sample_id": ["a", "b", "c"], "group": "x", "m": [1.0, 0.0, 0.0]})
    measurement = Measurement({"m": Metric(0.33333)}, "m", table, "p")
    assert measured_record(CELL, measurement).primary.value == 1 / 3


def test_seal__does_not_depend_on_the_order_of_keys() -> None:
    assert seal_of({"a": 1, "b": 0.1, "seal": "x"}) == seal_of({"b": 0.1, "a": 1})
    assert seal_of({"a": 1}) != seal_of({"a": 2})


def test_save__no_space_leaves_the_old_record(
    save: Callable[..., Record], store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save("clip", hits=10)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "fsync_path", full)
    with pytest.raises(StorageError, match="No space left"):
        save("clip", hits=30)
    monkeypatch.undo()
    assert store.all() == [good]
    assert not list((store.root / "clip").glob(f".*{storage.TEMPORARY_SUFFIX}"))


def test_path__refuses_names_that_leave_the_folder(store: RecordStore) -> None:
    for row in ("../clip", "a/b", ".hidden", ""):
        with pytest.raises(ConfigError, match="cannot name a record"):
            store.path(row, "knn", "demo_objects")


def test_record__ok_without_metrics_is_refused() -> None:
    with pytest.raises(ValueError, match="an ok record needs metrics"):
        Record(cell=CELL, status="ok")


def test_record__failed_with_a_score_is_refused(save: Callable[..., Record]) -> None:
    metrics = save("clip").metrics
    with pytest.raises(ValueError, match="a failed record has an error and no metric"):
        Record(cell=CELL, status="failed", metrics=metrics)


def test_measured_record__statistic_none_has_no_interval() -> None:
    table = pd.DataFrame({"sample_id": ["a"], "group": ["a"]})
    measurement = Measurement({"box_ap": Metric(0.3, statistic="none")}, "box_ap", table, "p")
    metric = measured_record(CELL, measurement).primary
    assert metric.low is None
    assert metric.half_width is None


def test_plain__makes_json() -> None:
    value = {"a": np.float32(0.5), 1: (np.int64(2), Path("x")), "n": float("nan"), "v": np.ones(2)}
    assert plain(value) == {"a": 0.5, "1": [2, "x"], "n": None, "v": [1.0, 1.0]}
    json.dumps(plain(value), allow_nan=False)


WRITER = """
import sys
import numpy as np
import pandas as pd
from pathlib import Path
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.records import Cell, RecordStore, measured_record

store = RecordStore(Path(sys.argv[1]))
names, num_rounds = sys.argv[2].split(","), int(sys.argv[3])
size = 3000
ids = [str(i) for i in range(size)]
for number in range(num_rounds):
    hits = (np.arange(size) < number % size).astype(float)
    table = pd.DataFrame({"sample_id": ids, "group": ids, "m": hits})
    measurement = Measurement({"m": Metric(float(hits.mean()))}, "m", table, "p")
    for name in names:
        cell = Cell(
            backbone=name, protocol="knn", dataset="d", world="demo", cell_fingerprint=str(number)
        )
        store.save(measured_record(cell, measurement, num_resamples=2), table)
"""


def start_writer(root: Path, names: str, num_rounds: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(root), names, str(num_rounds)])


def test_save__killed_at_random_moments_leaves_a_whole_record(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    random = np.random.default_rng(0)
    path = store.path("clip", "knn", "d")
    for _ in range(4):
        path.unlink(missing_ok=True)
        process = start_writer(tmp_path, "clip", 1_000_000)
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2 * random.random())
        process.kill()
        process.wait()
        (record,) = store.all()
        assert store.outcomes(record)["m"].mean() == pytest.approx(record.primary.value)


def test_save__two_processes_on_one_folder(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, f"{name},shared", 15) for name in ("one", "two")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [record.row_id for record in RecordStore(tmp_path).all()] == ["one", "shared", "two"]
