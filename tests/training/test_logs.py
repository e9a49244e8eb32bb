from __future__ import annotations

import builtins
import errno
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskclip_bench.errors import MissingDependencyError, StorageError
from maskclip_bench.training.logs import LOG_FILE, NoLog, RunLog, read_log


def write_steps(folder: Path, steps: range, *, start_step: int = 0, **options: Any) -> None:
    with RunLog(folder, start_step=start_step, tensorboard=False, **options) as log:
        for step in steps:
            log.write(step, {"loss": step / 2})


def test_log__a_resumed_run_reads_like_an_uninterrupted_one(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 8))
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    write_steps(tmp_path, range(5, 8), start_step=4)
    assert read_log(tmp_path) == [{"step": step, "loss": step / 2} for step in range(1, 8)]


GARBAGE = [
    "",
    "null",
    "3",
    "[1]",
    "{}",
    '{"step": "x"}',
    '{"step": true}',
    "[" * 9999,
    "\x00\ufffd",
]


@pytest.mark.parametrize("content", GARBAGE)
def test_log__garbage_between_the_lines_is_dropped(tmp_path: Path, content: str) -> None:
    path = tmp_path / LOG_FILE
    path.write_text(f'{{"step": 1, "loss": 0.5}}\n{content}\n{{"step": 2, "loss": 1.0}}\n')
    expected = [{"step": step, "loss": step / 2} for step in range(1, 4)]
    assert read_log(tmp_path) == expected[:2]
    write_steps(tmp_path, range(3, 4), start_step=2)
    assert read_log(tmp_path) == expected
    assert len(path.read_text().splitlines()) == 3


def test_log__bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).write_bytes(bytes(range(256)) * 40)
    write_steps(tmp_path, range(1, 2))
    assert read_log(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("name", [LOG_FILE, "tensorboard"])
def test_log__something_else_in_its_place(tmp_path: Path, name: str) -> None:
    (tmp_path / LOG_FILE).mkdir() if name == LOG_FILE else (tmp_path / name).touch()
    with pytest.raises(StorageError, match=name):
        RunLog(tmp_path, start_step=0)


def test_no_log(tmp_path: Path) -> None:
    NoLog().write(1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_log__not_finite_is_null(tmp_path: Path) -> None:
    with RunLog(tmp_path, start_step=0, tensorboard=False) as log:
        log.write(1, {"loss": math.nan})
    assert json.loads((tmp_path / LOG_FILE).read_text()) == {"step": 1, "loss": None}


def test_log__none_yet(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []


def test_log__tensorboard(tmp_path: Path) -> None:
    with RunLog(tmp_path, start_step=0) as log:
        log.write(1, {"loss": 0.5})
    assert [path.name[:16] for path in (tmp_path / "tensorboard").iterdir()] == ["events.out.tfeve"]


def test_log__wandb_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(MissingDependencyError, match=r"pip install wandb, or set log.wandb"):
        RunLog(tmp_path, start_step=0, tensorboard=False, wandb_project="p")


def test_log__wandb_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    run = SimpleNamespace(
        log=lambda numbers, step: seen.append((step, numbers)),
        finish=lambda exit_code: seen.append(exit_code),
    )
    module = SimpleNamespace(init=lambda **options: seen.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    write_steps(tmp_path, range(1, 2), wandb_project="p", name="demo/clip", recipe={"seed": 0})
    options, logged, exit_code = seen
    assert (options["project"], options["resume"], options["config"]) == ("p", "allow", {"seed": 0})
    assert logged == (1, {"loss": 0.5})
    assert exit_code == 0


def test_log__no_space(tmp_path: Path) -> None:
    log = RunLog(tmp_path, start_step=0, tensorboard=False)

    class Full:
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    log._file.close()
    log._file = Full()  # type: ignore[assignment]
    with pytest.raises(StorageError, match=r"No space left on the device: .*log.jsonl"):
        log.write(1, {"loss": 0.5})


def test_log__no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match="No permission to write"):
        RunLog(tmp_path, start_step=0, tensorboard=False)


def test_log__without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # its import fails
    with caplog.at_level("INFO"), RunLog(tmp_path, start_step=0) as log:
        log.write(1, {"loss": 0.5})
    assert "maskclip-bench[tensorboard]" in caplog.text
    assert [line["loss"] for line in read_log(tmp_path)] == [0.5]
    assert not (tmp_path / "tensorboard").exists()
