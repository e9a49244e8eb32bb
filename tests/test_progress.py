from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest

from maskclip_bench.progress import (
    Report,
    Snapshot,
    Throttle,
    no_progress,
    read_progress,
    throttled,
    write_progress,
)

STATE = Snapshot(
    step=3,
    total_steps=10,
    epoch=0.3,
    images_per_second=100.0,
    eta_seconds=7.0,
    terms={"loss": 2.5, "contrastive_loss": 2.5},
    values={"lr": 1e-3},
)


def test_progress__round_trip(tmp_path: Path) -> None:
    write_progress(tmp_path, STATE)
    assert read_progress(tmp_path) == STATE
    assert STATE.loss == 2.5


def test_progress__not_finite_becomes_nan_again(tmp_path: Path) -> None:
    write_progress(tmp_path, Snapshot(step=1, total_steps=2, terms={"loss": math.inf}))
    found = read_progress(tmp_path)
    assert found is not None
    assert math.isnan(found.loss)


def test_progress__before_the_first_step() -> None:
    assert math.isnan(Snapshot(step=0, total_steps=2).loss)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"step": 1}',
        '{"step": Infinity, "total_steps": 2}',
        '{"step": 1, "total_steps": "many"}',
        '{"step": 1, "total_steps": 2, "terms": 3}',
        '{"step": 1, "total_steps": 2, "values": {"lr": "x"}}',
        '{"step": 1, "total_steps": 2, "epoch": []}',
    ],
)
def test_read_progress__unreadable_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "progress.json").write_text(content)
    assert read_progress(tmp_path) is None


def test_read_progress__a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "progress.json").mkdir()
    assert read_progress(tmp_path) is None


def test_throttle(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 1.0, 1.5, 2.4, 2.5])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    throttle = Throttle(1.0)
    assert [throttle.due() for _ in range(3)] == [True, False, True]
    assert throttle.due(force=True)
    assert [throttle.due() for _ in range(2)] == [False, True]


def test_throttled__the_first_and_the_end_of_each_stage() -> None:
    told: list[tuple[str, int, int]] = []
    progress = throttled(lambda *state: told.append(state), seconds=1000.0)
    for stage in ("images", "texts"):
        for done in range(1, 5):
            progress(stage, done, 4)
    no_progress("images", 1, 4)
    assert told == [("images", 1, 4), ("images", 4, 4), ("texts", 4, 4)]


def test_report__on_another_rank_nothing_is_written(tmp_path: Path) -> None:
    Report(None, None)(STATE, force=True)
    assert list(tmp_path.iterdir()) == []


def test_report__a_terminal_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    calls: list[int] = []

    def fail(snapshot: Snapshot) -> None:
        calls.append(snapshot.step)
        raise OSError(errno.EIO, "Input/output error")

    report = Report(tmp_path, fail)
    for _ in range(3):
        report(STATE, force=True)
    assert calls == [3]
    assert read_progress(tmp_path) == STATE


def test_report__not_too_often(tmp_path: Path) -> None:
    told: list[int] = []
    report = Report(tmp_path, lambda state: told.append(state.step))
    for step in range(1, 6):
        report(Snapshot(step=step, total_steps=5), force=step == 5)
    assert told == [1, 5]
    found = read_progress(tmp_path)
    assert found is not None
    assert found.step == 5
