from __future__ import annotations

import pytest

from maskclip_bench.training.meter import Meter


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
