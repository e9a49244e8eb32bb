"""A run that was stopped or killed and started again equals one that never was, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from maskclip_bench.pretrain import trainer
from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.preparation import Prepared
from maskclip_bench.pretrain.step import Stepper
from maskclip_bench.pretrain.trainer import train
from maskclip_bench.progress import Snapshot
from maskclip_bench.training.logs import read_log

NUM_STEPS = 40
CLOCK = ("images_per_second", "data_wait_fraction", "memory_gib")


def numbers(folder: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    return [
        {key: value for key, value in line.items() if key not in CLOCK} for line in read_log(folder)
    ]


@dataclass
class Trained:
    """What a run computed, over all of its parts.

    Attributes:
        draws: After each step, every generator it drew from: of its micro-batches, and torch's own.
        method: The newest.
        optimizer: Its own.
    """

    draws: list[list[Tensor]] = field(default_factory=list)
    method: Any = None
    optimizer: Any = None

    def observe(self, patch: pytest.MonkeyPatch) -> None:
        """Look at every step that is done from now on."""
        step = Stepper.__call__

        def observed(stepper: Stepper, prepared: Prepared, *, stop: bool) -> Any:
            results = step(stepper, prepared, stop=stop)
            generators = [part.generator.get_state() for part in prepared.parts]
            self.draws.append([*generators, torch.get_rng_state()])
            self.method, self.optimizer = stepper._method, stepper._optimizer
            return results

        patch.setattr(Stepper, "__call__", observed)

    def state(self) -> dict[str, Any]:
        """Weights, teacher, all buffers (those that no checkpoint has, too), moments, draws."""
        return {
            "parameters": dict(self.method.named_parameters()),
            "buffers": dict(self.method.named_buffers()),
            "optimizer": self.optimizer.state_dict(),
            "draws": self.draws,
        }


def stopping_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let SIGTERM come while a step is done; it is answered after that step."""
    told = trainer.Report.__call__

    def ask(report: Any, state: Snapshot, *, force: bool) -> None:
        told(report, state, force=force)
        if state.step == step - 1:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(trainer.Report, "__call__", ask)


def assert_equal(found: Any, expected: Any, where: str = "") -> None:
    """Nested values with equal tensors, bit for bit."""
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where} {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_equal(found[number], value, f"{where} {number}")
    else:
        assert found == expected, where


HOLDS_STATE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "accumulation": ("slip", {}, {"accumulation_steps": 2, "optimizer": {"clip_grad_norm": 0.1}}),
    "bf16": ("maskclip", {}, {"precision": "bf16", "grad_checkpointing": True}),
    "stochastic_depth": (
        "maskclip",
        {"ema_momentum_end": 1.0, "mask_kind": "block"},
        {"accumulation_steps": 2, "model": {"vision": {"drop_path_rate": 0.5}}},
    ),
    "full_ema": (
        "maskclip",
        {"full_ema": True, "ema_momentum": None, "ema_memory": 0.3, "teacher_temp_warmup": 0.9},
        {"optimizer": {"layer_decay": 0.5}},
    ),
    "head_only_ema": ("maskclip", {"teacher": "momentum_head", "center_momentum": 0.5}, {}),
    "own_features": ("maskclip", {"target": "features", "loss_on": "all"}, {}),
    "pixels": ("maskclip", {"target": "pixels", "mlm_average": "captions"}, {}),
    "features_mse": ("maskclip", {"loss": "mse", "vocabulary_head": "own"}, {}),
    "codes": ("mvp", {"teacher_temp_warmup": 0.9, "quantizer_momentum": 0.5}, {}),
}
"""Fields with something that lasts from step to step: (method, its fields, the recipe's)."""
CASES = {**{name: (name, {}, {}) for name in METHODS}, **HOLDS_STATE}


@pytest.mark.parametrize("case", CASES)
def test_resume__stopped_in_the_middle_of_an_epoch(
    tiny: ModuleType,
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    """After the third of five steps; an epoch has four."""
    name, fields, changes = CASES[case]
    if name == "mvp":
        fields = {**fields, **tiny.teacher_fields(tmp_path)}
    settings = {"num_pairs": 80, "data": {"num_workers": 0}, "checkpoint": {"every_steps": 100}}
    recipe = tiny.tiny_recipe(name, fields=fields, **{**settings, **changes})
    whole, parts = Trained(), Trained()
    with monkeypatch.context() as patch:
        whole.observe(patch)
        train(recipe, output=tmp_path / "whole", data_root=data_root)
    with monkeypatch.context() as patch:
        parts.observe(patch)
        with monkeypatch.context() as inner, pytest.raises(KeyboardInterrupt):
            stopping_after(3, inner)
            train(recipe, output=tmp_path / "parts", data_root=data_root)
        assert [line["step"] for line in read_log(tmp_path / "parts")] == [1, 2, 3]
        assert not exported(tmp_path / "parts")
        train(recipe, output=tmp_path / "parts", data_root=data_root)
    assert len(whole.draws) == 5
    assert_equal(parts.state(), whole.state())
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    files = sorted(path.relative_to(tmp_path / "whole") for path in exported(tmp_path / "whole"))
    assert files
    for file in files:
        assert_equal(load_file(tmp_path / "parts" / file), load_file(tmp_path / "whole" / file))


def exported(folder: Path) -> list[Path]:
    """Weights of the student, and of the teacher where there is one."""
    return list(folder.glob("*/open_clip_model.safetensors"))


def test_resume__killed_at_a_random_step(tiny: ModuleType, tmp_path: Path, data_root: Path) -> None:
    settings = {"num_pairs": 16 * NUM_STEPS, "checkpoint": {"every_steps": 3}, "seed": 1}
    recipe = tiny.tiny_recipe("maskclip", **settings)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(recipe, output=whole, data_root=data_root)

    jobs = json.dumps([{"method": "maskclip", "output": str(killed), **settings}])
    kill_at = random.Random().randint(1, NUM_STEPS * 3 // 4)
    process = subprocess.Popen([sys.executable, tiny.__file__, str(data_root), jobs])
    try:
        while len(read_log(killed)) < kill_at and process.poll() is None:
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert len(read_log(killed)) >= kill_at, "the process failed by itself"
    assert not (killed / "model").exists(), "the process was too quick to be killed"

    train(recipe, output=killed, data_root=data_root)
    assert numbers(killed) == numbers(whole), f"killed at step {kill_at}"
    for file in exported(whole):
        assert_equal(load_file(killed / file.relative_to(whole)), load_file(file))
