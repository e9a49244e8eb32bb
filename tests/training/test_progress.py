from __future__ import annotations

import math
from pathlib import Path

import pytest

from maskclip_bench.training.progress import (
    Meter,
    Report,
    TrainProgress,
    read_progress,
    write_progress,
)

STATE = TrainProgress(
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
    write_progress(tmp_path, TrainProgress(step=1, total_steps=2, terms={"loss": math.inf}))
    found = read_progress(tmp_path)
    assert found is not None
    assert math.isnan(found.loss)


def test_progress__before_the_first_step() -> None:
    assert math.isnan(TrainProgress(step=0, total_steps=2).loss)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"step": 1}', '{"terms": 3}'])
def test_read_progress__unreadable_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "progress.json").write_text(content)
    assert read_progress(tmp_path) is None


def test_report__not_too_often(tmp_path: Path) -> None:
    told: list[int] = []
    report = Report(tmp_path, lambda state: told.append(state.step))
    for step in range(1, 6):
        report(TrainProgress(step=step, total_steps=5), force=step == 5)
    assert told == [1, 5]
    found = read_progress(tmp_path)
    assert found is not None
    assert found.step == 5


def test_meter__speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 1.0, 4.0, 4.0, 6.0, 8.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meter = Meter(0, total_steps=10, global_batch_size=8)
    with meter.waiting():
        pass
    meter.step()  # 4 s, 1 of them waiting
    assert meter.images_per_second == pytest.approx(2.0)
    assert meter.wait_fraction == pytest.approx(0.25)
    assert meter.eta_seconds(1) == pytest.approx(36.0)
