from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from maskclip_bench import distributed
from maskclip_bench.pretrain.run_log import logged, open_log
from maskclip_bench.progress import Snapshot
from maskclip_bench.training.logs import NoLog, read_log


def test_logged__everything_of_a_state_but_what_the_log_knows() -> None:
    state = Snapshot(
        step=3,
        total_steps=9,
        epoch=1.5,
        images_per_second=10.0,
        memory_bytes=2**30,
        terms={"loss": 2.0, "mlm_loss": 0.5},
        values={"lr": 0.1},
        num_nonfinite_steps=2,
    )
    assert logged(state) == {
        "epoch": 1.5,
        "loss": 2.0,
        "mlm_loss": 0.5,
        "lr": 0.1,
        "images_per_second": 10.0,
        "data_wait_fraction": 0.0,
        "memory_gib": 1.0,
        "num_nonfinite_steps": 2,
    }


def test_open_log__only_the_main_process_writes(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_log(tmp_path, 0, tiny.tiny_recipe()) as log:
        log.write(1, {"loss": 1.0})
    assert read_log(tmp_path) == [{"step": 1, "loss": 1.0}]
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    with open_log(tmp_path, 0, tiny.tiny_recipe()) as log:
        assert isinstance(log, NoLog)
