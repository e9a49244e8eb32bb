"""A run whose images are held in memory is the run without them, step for step."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file

from maskclip_bench.pretrain.trainer import train
from maskclip_bench.training.logs import read_log

CLOCK = ("images_per_second", "data_wait_fraction", "memory_gib")


def test_held__the_same_recipe(tiny: ModuleType) -> None:
    plain, held = (tiny.tiny_recipe(data={"held": held}) for held in ("none", "device"))
    assert held.data.held == "device"
    assert held.computation_fingerprint() == plain.computation_fingerprint()


@pytest.mark.parametrize(("method", "accumulation"), [("clip", 1), ("slip", 2)])
def test_held__the_same_run(
    tiny: ModuleType, tmp_path: Path, data_root: Path, method: str, accumulation: int
) -> None:
    """Begun without held images and ended with them, in the third epoch."""
    runs = {"whole": ["none"], "held": ["device"], "both": ["none", "device"]}
    found = {}
    for name, parts in runs.items():
        for number, held in enumerate(parts, start=1):
            recipe = tiny.tiny_recipe(
                method,
                data={"held": held},
                accumulation_steps=accumulation,
                num_pairs=16 * 10,
            )
            if number < len(parts):
                with pytest.raises(KeyboardInterrupt), tiny._stopping_after(5, rank=0):
                    train(recipe, output=tmp_path / name, data_root=data_root)
            else:
                train(recipe, output=tmp_path / name, data_root=data_root)
        log = [
            {key: value for key, value in line.items() if key not in CLOCK}
            for line in read_log(tmp_path / name)
        ]
        weights = load_file(tmp_path / name / "model" / "open_clip_model.safetensors")
        found[name] = (log, {key: tensor.sum().item() for key, tensor in weights.items()})
    assert found["held"] == found["whole"]
    assert found["both"] == found["whole"]
