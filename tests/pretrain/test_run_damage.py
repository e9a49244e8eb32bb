"""What a run does when its data, its folder, the disk or its numbers are not as they should be."""

from __future__ import annotations

import logging
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from maskclip_bench.data.shapes import write_shape_shards
from maskclip_bench.errors import CheckpointError, DataError, NonFiniteError, TrainingError
from maskclip_bench.pretrain import trainer
from maskclip_bench.pretrain.trainer import train
from maskclip_bench.progress import Snapshot
from maskclip_bench.training.checkpoint import CheckpointStore
from maskclip_bench.training.logs import read_log

WEIGHTS = Path("model") / "open_clip_model.safetensors"


@pytest.fixture
def own_data(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may change."""
    return shutil.copytree(data_root, tmp_path / "data")


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send the signal when the trainer reports that step."""
    told = trainer.Report.__call__

    def ask(report: Any, snapshot: Snapshot, *, force: bool) -> None:
        told(report, snapshot, force=force)
        if snapshot.step == step:
            signal.raise_signal(signal.Signals(number))

    monkeypatch.setattr(trainer.Report, "__call__", ask)


def stopped_run(recipe: Any, output: Path, data_root: Path, number: int = signal.SIGTERM) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2, number)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, output=output, data_root=data_root)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal__a_checkpoint_is_written(
    tiny: ModuleType, tmp_path: Path, data_root: Path, number: int
) -> None:
    recipe = tiny.tiny_recipe(checkpoint={"every_steps": 100})
    stopped_run(recipe, tmp_path, data_root, number)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003.pt"]


# Data.


def one_more_shard(root: Path) -> None:
    write_shape_shards(root / "more", num_samples=72, num_shards=1, size=36, seed=9)
    shutil.move(root / "more" / "shapes-000000.tar", root / "shapes" / "shapes-000002.tar")


def another_image_of_equal_size(root: Path) -> None:
    path = root / "shapes" / "shapes-000001.tar"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 300] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)


def another_order(root: Path) -> None:
    one, two = (root / "shapes" / f"shapes-00000{number}.tar" for number in (0, 1))
    one.rename(root / "aside")
    two.rename(one)
    (root / "aside").rename(two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_more_shard, r"\(72 samples then, 144 now; new: shapes/shapes-000002\.tar\)"),
        (another_image_of_equal_size, r"\(with other content: shapes/shapes-000001\.tar\)"),
        (another_order, r"\(with other content: shapes/shapes-000000\.tar, shapes/shapes-000001"),
    ],
)
def test_resume__other_data_is_refused(
    tiny: ModuleType, tmp_path: Path, own_data: Path, change: Any, message: str
) -> None:
    stopped_run(tiny.tiny_recipe(), tmp_path / "run", own_data)
    change(own_data)
    with pytest.raises(DataError, match=rf"other data up to step 3 {message}") as raised:
        train(tiny.tiny_recipe(), output=tmp_path / "run", data_root=own_data)
    assert "Bring back the data as they were, or start again in another folder" in str(raised.value)


def test_resume__the_same_data_elsewhere(tiny: ModuleType, tmp_path: Path, own_data: Path) -> None:
    stopped_run(tiny.tiny_recipe(), tmp_path / "run", own_data)
    own_data.rename(tmp_path / "moved")
    train(tiny.tiny_recipe(), output=tmp_path / "run", data_root=tmp_path / "moved")


def test_resume__a_checkpoint_of_another_recipe(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    """Also where recipe.yaml, which would tell, is gone."""
    stopped_run(tiny.tiny_recipe(), tmp_path, data_root)
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match=r"holds a run of another recipe; it differs in: seed\."):
        train(tiny.tiny_recipe(seed=1), output=tmp_path, data_root=data_root)


# Damage.


def test_resume__every_file_damaged_at_random(
    tiny: ModuleType, tmp_path: Path, data_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run ends as it should have, whatever was done to its folder, if one checkpoint is left."""
    recipe = tiny.tiny_recipe("maskclip", log={"every_steps": 1, "tensorboard": True})
    train(recipe, output=tmp_path / "whole", data_root=data_root)
    expected = load_file(tmp_path / "whole" / WEIGHTS)
    losses = [line["loss"] for line in read_log(tmp_path / "whole")]
    for seed in range(3):
        draw = random.Random(seed)
        run = shutil.copytree(tmp_path / "whole", tmp_path / str(seed))
        for path in sorted(path for path in run.rglob("*") if path.is_file()):
            if path.name == "step_00000004.pt":
                continue
            content = path.read_bytes()
            ways = (content[: draw.randrange(len(content) + 1)], draw.randbytes(300), b"")
            path.write_bytes(draw.choice(ways))
        train(recipe, output=run, data_root=data_root)
        found = load_file(run / WEIGHTS)
        assert all(found[name].equal(tensor) for name, tensor in expected.items())
        assert [line["loss"] for line in read_log(run)][-2:] == losses[-2:]


def test_resume__no_checkpoint_is_left(tiny: ModuleType, tmp_path: Path, data_root: Path) -> None:
    stopped_run(tiny.tiny_recipe(), tmp_path, data_root)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(CheckpointError, match="None of the checkpoints"):
        train(tiny.tiny_recipe(), output=tmp_path, data_root=data_root)


def test_resume__of_a_run_from_before_checkpoints_knew_their_data(
    tiny: ModuleType, tmp_path: Path, own_data: Path
) -> None:
    stopped_run(tiny.tiny_recipe(), tmp_path / "run", own_data)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        payload = torch.load(path, weights_only=True)
        del payload["data"]
        torch.save({**payload, "format": 1}, path)
    one_more_shard(own_data)
    train(tiny.tiny_recipe(), output=tmp_path / "run", data_root=own_data)


# Numbers that are not finite.


def test_export__weights_that_are_not_finite(
    tiny: ModuleType, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They became so in the last update, after which no loss is computed."""
    recipe = tiny.tiny_recipe(num_pairs=32)

    class Last(trainer.Stepper):
        def __call__(self, prepared: Any, **options: Any) -> Any:
            result = super().__call__(prepared, **options)
            if prepared.step == 1:
                with torch.no_grad():
                    self._method.model.visual.head.proj.weight[0, :3] = math.nan
            return result

    monkeypatch.setattr(trainer, "Stepper", Last)
    match = (
        r"The student is not written: 1 of \d+ tensors hold values that are not finite \(3 of "
        r"512 values\): visual\.head\.proj\.weight\. Lower optimizer\.lr"
    )
    with pytest.raises(NonFiniteError, match=match):
        train(recipe, output=tmp_path, data_root=data_root)
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "checkpoints" / "step_00000002.pt").exists()


def test_train__a_rate_at_which_nothing_is_finite(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    optimizer = {"lr": 1e38, "warmup_steps": None, "min_lr": 1e38}
    recipe = tiny.tiny_recipe(optimizer=optimizer, num_pairs=16 * 3)
    with pytest.raises((NonFiniteError, TrainingError), match=r"not finite"):
        train(recipe, output=tmp_path, data_root=data_root)
    assert not (tmp_path / "model").exists()


def test_train__a_run_whose_every_step_was_skipped(
    tiny: ModuleType, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shorter than max_nonfinite_steps, and would export the weights it began with."""
    norm = torch.tensor(math.inf)
    monkeypatch.setattr(trainer.Stepper, "_gradient_norm", lambda self: norm)
    with pytest.raises(TrainingError, match=r"not finite for 2 steps in a row, up to step 1"):
        train(tiny.tiny_recipe(num_pairs=32), output=tmp_path, data_root=data_root)
    assert not (tmp_path / "model").exists()


# The disk.


def pretrain(
    tiny: ModuleType, tmp_path: Path, data_root: Path, *, max_bytes: int | None, **changes: Any
) -> subprocess.CompletedProcess[str]:
    """The command, in a process of which no file may become larger than `max_bytes`."""
    from maskclip_bench.modeling import DEMO_VIT

    model = {"image_size": 48, "vision": {"timm_model": DEMO_VIT}}  # known to every process
    values = tiny.tiny_values(model=model, num_pairs=48, world="real", **changes)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))

    def limit() -> None:
        if max_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))

    command = [sys.executable, "-m", "maskclip_bench", "pretrain", str(tmp_path / "recipe.yaml")]
    options = ["--output", str(tmp_path / "run"), "--device", "cpu", "--quiet"]
    environment = {**os.environ, "MASKCLIP_BENCH_DATA": str(data_root)}
    return subprocess.run(
        command + options,
        preexec_fn=limit,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes", [0, 300, 3000, 100_000])
def test_disk__files_may_not_grow(
    tiny: ModuleType, tmp_path: Path, data_root: Path, max_bytes: int
) -> None:
    """The recipe, the log, TensorBoard's file and the checkpoint meet the limit in turn."""
    log = {"tensorboard": True}
    result = pretrain(tiny, tmp_path, data_root, max_bytes=max_bytes, log=log)
    assert result.returncode == 4, result.stderr
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr
    result = pretrain(tiny, tmp_path, data_root, max_bytes=None, log=log)
    assert result.returncode == 0, result.stderr
    assert [path for path in (tmp_path / "run").rglob("*.tmp")] == []


def test_leftovers_of_dead_processes_are_removed(
    tiny: ModuleType, tmp_path: Path, data_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that is killed while it writes leaves its temporary file."""
    code = (
        "import os, sys; from pathlib import Path; from maskclip_bench import storage\n"
        "with storage.atomic_file(Path(sys.argv[1])) as path: path.touch(); os._exit(1)"
    )
    target = tmp_path / "checkpoints" / "step_00000002.pt"
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert len(list(target.parent.glob(".*.tmp"))) == 1
    caplog.set_level(logging.INFO)
    train(tiny.tiny_recipe(num_pairs=16), output=tmp_path, data_root=data_root)
    assert list(tmp_path.rglob(".*.tmp")) == []
    assert CheckpointStore(tmp_path / "checkpoints", keep=1).latest() is not None
