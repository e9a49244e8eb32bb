from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from maskclip_bench import storage
from maskclip_bench.errors import ConfigError, DataError, StorageError
from maskclip_bench.results.measurement import Measurement, Metric
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
    for row in ("../clip", "a/b", ".hidden", "", "m\u00fc", "__seed1"):
        with pytest.raises(ConfigError, match="cannot name a row"):
            store.path(row, "knn", "demo_objects")
    with pytest.raises(ConfigError, match="cannot name a record"):
        store.path("clip", "knn", "my birds")


def test_save__a_name_that_is_another_row(save: Callable[..., Record], store: RecordStore) -> None:
    save("clip", seed=1)
    with pytest.raises(ConfigError, match="the row of 'clip' with that seed has the same name"):
        save("clip__seed1")
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        save("clip", seed=-1)
    assert len(store.all(backbones=["clip"])) == 1


def test_save__half_characters_in_a_message(store: RecordStore) -> None:
    cell = Cell(
        backbone="clip", protocol="knn", dataset="birds", world="real", cell_fingerprint="f"
    )
    saved = store.save(failed_record(cell, ValueError("no file caf\udce9.jpg")))
    assert saved.error is not None and "\udce9" in saved.error.message
    assert store.all() == [saved]


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
