"""A run killed with SIGKILL and started again equals one that was never killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

from safetensors.torch import load_file

from maskclip_bench.pretrain.trainer import train
from maskclip_bench.training.logs import read_log

NUM_STEPS = 40
CLOCK = ("images_per_second", "data_wait_fraction", "memory_gib")


def numbers(folder: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    return [
        {key: value for key, value in line.items() if key not in CLOCK} for line in read_log(folder)
    ]


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
    for part in ("model", "teacher"):
        expected = load_file(whole / part / "open_clip_model.safetensors")
        found = load_file(killed / part / "open_clip_model.safetensors")
        assert expected.keys() == found.keys()
        for name in expected:
            assert expected[name].equal(found[name]), name
