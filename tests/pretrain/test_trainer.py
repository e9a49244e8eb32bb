from __future__ import annotations

import json
import logging
import math
import re
import shutil
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor

from maskclip_bench.data.batch import Batch
from maskclip_bench.data.shapes import write_shape_shards
from maskclip_bench.errors import ConfigError, DataError, StorageError, TrainingError
from maskclip_bench.pretrain.export import finished_fingerprint
from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.methods.base import Values
from maskclip_bench.pretrain.methods.clip import CLIP
from maskclip_bench.pretrain.trainer import train
from maskclip_bench.progress import Snapshot, read_progress
from maskclip_bench.training.checkpoint import CheckpointStore
from maskclip_bench.training.logs import read_log

LOSSES = ("loss", "contrastive_loss", "distillation_loss", "mlm_loss", "ssl_loss", "lr")


def losses(folder: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    return [
        {key: value for key, value in line.items() if key in (*LOSSES, "step")}
        for line in read_log(folder)
    ]


@pytest.mark.parametrize("method", ["clip", "slip", "clip_mae", "maskclip"])
def test_train__whole_run(tiny: ModuleType, tmp_path: Path, data_root: Path, method: str) -> None:
    recipe = tiny.tiny_recipe(method)
    states: list[Snapshot] = []
    model = train(recipe, output=tmp_path, data_root=data_root, progress=states.append)
    assert model == tmp_path / "model"
    log = read_log(tmp_path)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "lr", "logit_scale", "images_per_second", "data_wait_fraction"):
        assert all(math.isfinite(line[key]) for line in log), key
    assert log[0]["lr"] == pytest.approx(1e-6)
    assert states[-1].step == states[-1].total_steps == 6
    assert states[-1].epoch == pytest.approx(6 / 4)  # 72 samples, batches of 16
    assert read_progress(tmp_path) == states[-1]
    assert [path.name for path in CheckpointStore(tmp_path / "checkpoints", keep=2).paths()] == [
        "step_00000004.pt",
        "step_00000006.pt",
    ]
    assert finished_fingerprint(model) == recipe.computation_fingerprint()
    assert (tmp_path / "teacher").is_dir() == (method == "maskclip")
    before = (tmp_path / "log.jsonl").stat().st_mtime_ns
    train(recipe, output=tmp_path, data_root=Path("/nowhere"))  # finished: nothing is read
    assert (tmp_path / "log.jsonl").stat().st_mtime_ns == before


def test_train__leaves_the_callers_generator_alone(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train(tiny.tiny_recipe(num_pairs=32), output=tmp_path, data_root=data_root)
    assert torch.equal(torch.rand(1), expected)


def test_train__signal_handlers_are_given_back(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(tiny.tiny_recipe(num_pairs=16), output=tmp_path, data_root=data_root)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_train__broken_newest_checkpoint(
    tiny: ModuleType, tmp_path: Path, data_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny.tiny_recipe()
    train(recipe, output=tmp_path, data_root=data_root)
    expected = losses(tmp_path)
    (tmp_path / "model" / "provenance.json").unlink()
    newest = tmp_path / "checkpoints" / "step_00000006.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with caplog.at_level(logging.INFO):
        train(recipe, output=tmp_path, data_root=data_root)
    assert "step_00000006.pt cannot be read" in caplog.text
    assert "Going on from step 4 of 6" in caplog.text
    assert losses(tmp_path) == expected


def test_train__accumulation_gives_the_same_losses(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    for steps in (1, 2):
        recipe = tiny.tiny_recipe(accumulation_steps=steps)
        train(recipe, output=tmp_path / str(steps), data_root=data_root)
    one, two = ([line["loss"] for line in losses(tmp_path / str(n))] for n in (1, 2))
    assert two == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"grad_checkpointing": True},
        {"optimizer": {"clip_grad_norm": 1.0}},
        {"epochs": 0.5, "num_pairs": None, "optimizer": {"warmup_steps": None}},
    ],
    ids=["bf16", "grad_checkpointing", "clip_grad_norm", "epochs"],
)
def test_train__options(
    tiny: ModuleType, tmp_path: Path, data_root: Path, changes: dict[str, Any]
) -> None:
    changes = {"num_pairs": 32, **changes}
    train(tiny.tiny_recipe("maskclip", **changes), output=tmp_path, data_root=data_root)
    log = read_log(tmp_path)
    assert len(log) == 2
    assert all(math.isfinite(line["loss"]) for line in log)


def test_train__grad_checkpointing_changes_nothing(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    for name, on in (("off", False), ("on", True)):
        recipe = tiny.tiny_recipe("maskclip", grad_checkpointing=on, num_pairs=48)
        train(recipe, output=tmp_path / name, data_root=data_root)
    on_off = ([line["loss"] for line in losses(tmp_path / name)] for name in ("on", "off"))
    assert next(on_off) == pytest.approx(next(on_off), abs=1e-5)


def test_train__loss_falls(tiny: ModuleType, tmp_path: Path, data_root: Path) -> None:
    recipe = tiny.tiny_recipe(num_pairs=16 * 24, optimizer={"lr": 3e-3})
    train(recipe, output=tmp_path, data_root=data_root)
    found = [line["loss"] for line in read_log(tmp_path)]
    assert sum(found[-4:]) < sum(found[:4]) - 0.4


class _BrokenCLIP(CLIP):
    """CLIP whose loss is not finite at chosen steps."""

    bad_calls: range = range(0)
    calls = 0

    def contrast(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = super().contrast(embeddings)
        type(self).calls += 1
        if self.calls in self.bad_calls:
            return {"contrastive_loss": terms["contrastive_loss"] * math.nan}
        return terms


def broken(monkeypatch: pytest.MonkeyPatch, bad_calls: range) -> None:
    monkeypatch.setattr(_BrokenCLIP, "bad_calls", bad_calls)
    monkeypatch.setattr(_BrokenCLIP, "calls", 0)
    monkeypatch.setitem(METHODS._loaded, "clip", _BrokenCLIP)


def test_train__a_step_that_is_not_finite_is_skipped(
    tiny: ModuleType,
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken(monkeypatch, range(2, 4))
    train(tiny.tiny_recipe(max_nonfinite_steps=3), output=tmp_path, data_root=data_root)
    log = read_log(tmp_path)
    assert [line["loss"] is None for line in log] == [False, True, True, False, False, False]
    assert log[-1]["num_nonfinite_steps"] == 2
    assert "Step 1 skipped: contrastive_loss is not finite" in caplog.text
    assert "No checkpoint at step 2, which was skipped" in caplog.text


@pytest.mark.parametrize("clip_grad_norm", [None, 1.0])
def test_train__a_gradient_that_is_not_finite_is_skipped(
    tiny: ModuleType,
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    clip_grad_norm: float | None,
) -> None:
    """The loss is finite; without a look at the gradient, weights and moments would be lost."""

    class Infinite(_BrokenCLIP):
        def contrast(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
            terms = super().contrast(embeddings)
            if self.calls == 2:
                zero = 0 * embeddings["text_features"].sum()
                terms["contrastive_loss"] = terms["contrastive_loss"] + zero.sqrt()
            return terms

    monkeypatch.setattr(Infinite, "calls", 0)
    monkeypatch.setitem(METHODS._loaded, "clip", Infinite)
    recipe = tiny.tiny_recipe(optimizer={"clip_grad_norm": clip_grad_norm})
    train(recipe, output=tmp_path, data_root=data_root)
    log = read_log(tmp_path)
    assert all(math.isfinite(line["loss"]) for line in log)
    assert [line["num_nonfinite_steps"] for line in log] == [0, 1, 1, 1, 1, 1]
    assert "Step 1 skipped: the gradient is not finite" in caplog.text
    checkpoint = CheckpointStore(tmp_path / "checkpoints", keep=2).latest()
    assert checkpoint is not None
    assert all(tensor.isfinite().all() for tensor in checkpoint.method.values())
    moments = checkpoint.optimizer["state"].values()
    assert all(state["exp_avg"].isfinite().all() for state in moments)


def test_train__too_many_gradients_that_are_not_finite(
    tiny: ModuleType, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Infinite(CLIP):
        def contrast(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
            terms = super().contrast(embeddings)
            zero = 0 * self.model.text.text_projection.sum()
            return {"contrastive_loss": terms["contrastive_loss"] + zero.sqrt()}

    monkeypatch.setitem(METHODS._loaded, "clip", Infinite)
    with pytest.raises(
        TrainingError,
        match=r"the gradient is not finite for 2 steps in a row, up to step 1. "
        r"Gradients not finite: model.text.text_projection. Ranges at that step: images -",
    ):
        train(tiny.tiny_recipe(max_nonfinite_steps=2), output=tmp_path, data_root=data_root)


def test_train__too_many_steps_that_are_not_finite(
    tiny: ModuleType, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, range(3, 99))
    draws: list[Tensor] = []
    encode = _BrokenCLIP.encode

    def remember(method: CLIP, batch: Batch) -> Any:
        draws.append(batch.generator.get_state())
        return encode(method, batch)

    monkeypatch.setattr(_BrokenCLIP, "encode", remember)
    with pytest.raises(TrainingError) as caught:
        train(tiny.tiny_recipe(max_nonfinite_steps=2), output=tmp_path, data_root=data_root)
    message = str(caught.value)
    assert "contrastive_loss is not finite for 2 steps in a row, up to step 3" in message
    for part in (
        "images -",
        "tokens 0..",
        "image_features -",
        "text_features -",
        "weights -",
        "logit_scale 2.6",
        "All weights are finite.",
        "step_00000002.pt",
        "optimizer.lr",
    ):
        assert part in message, part
    assert len(draws) == 5
    assert torch.equal(draws[4], draws[3]), "the ranges are those of another step"
    assert not torch.equal(draws[3], draws[2])
    checkpoint = CheckpointStore(tmp_path / "checkpoints", keep=2).latest()
    assert checkpoint is not None
    assert checkpoint.step == 2


def test_train__weights_that_are_not_finite_are_not_kept(
    tiny: ModuleType,
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A finite loss may have a gradient that is not; the checkpoint before it must stay."""

    class Poisoned(CLIP):
        def update(self, *, step: int, total_steps: int) -> Values:
            values = super().update(step=step, total_steps=total_steps)
            if step == 4:
                with torch.no_grad():
                    self.model.text.text_projection.fill_(math.nan)
            return values

    monkeypatch.setitem(METHODS._loaded, "clip", Poisoned)
    with pytest.raises(TrainingError, match="not finite for 2 steps in a row"):
        train(tiny.tiny_recipe(max_nonfinite_steps=2), output=tmp_path, data_root=data_root)
    assert "No checkpoint at step 4: weights are not finite" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002.pt"]


def test_train__evaluators(tiny: ModuleType, tmp_path: Path, data_root: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def evaluator(model: CustomTextCLIP, step: int) -> dict[str, float]:
        torch.rand(3)  # what an evaluator draws must not change the run
        seen.append((step, model.training))
        return {"top1_accuracy": 0.25}

    recipe = tiny.tiny_recipe(evaluation={"every_epochs": 0.5})
    train(recipe, output=tmp_path / "a", data_root=data_root, evaluators=[evaluator])
    train(tiny.tiny_recipe(), output=tmp_path / "b", data_root=data_root)
    assert seen == [(2, False), (4, False), (6, False)]
    assert next(line for line in read_log(tmp_path / "a") if "top1_accuracy" in line) == {
        "step": 2,
        "top1_accuracy": 0.25,
    }
    trained = [line for line in losses(tmp_path / "a") if "loss" in line]
    assert trained == losses(tmp_path / "b")


def test_train__folder_of_another_recipe(tiny: ModuleType, tmp_path: Path, data_root: Path) -> None:
    train(tiny.tiny_recipe(num_pairs=16), output=tmp_path, data_root=data_root)
    with pytest.raises(
        ConfigError, match=r"another recipe; it differs in: num_pairs, seed. Choose"
    ):
        train(tiny.tiny_recipe(num_pairs=32, seed=1), output=tmp_path, data_root=data_root)


def test_train__other_logging_is_the_same_run(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    train(tiny.tiny_recipe(num_pairs=16), output=tmp_path, data_root=data_root)
    train(
        tiny.tiny_recipe(num_pairs=16, log={"every_steps": 5}), output=tmp_path, data_root=data_root
    )


def test_train__vocabulary_of_another_tokenizer(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    recipe = tiny.tiny_recipe(model={"text": {"vocab_size": 77}})
    with pytest.raises(ConfigError, match=r"demo tokenizer has \d+ tokens.*vocab_size is 77"):
        train(recipe, output=tmp_path, data_root=data_root)


def test_train__accumulation_longer_than_an_epoch(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    recipe = tiny.tiny_recipe(global_batch_size=128, accumulation_steps=64, num_pairs=128)
    with pytest.raises(ConfigError, match=r"36 micro-batches, fewer than accumulation_steps=64"):
        train(recipe, output=tmp_path, data_root=data_root)


def test_train__missing_data(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train(tiny.tiny_recipe(), output=tmp_path / "run", data_root=tmp_path)


def break_images(shard: Path, numbers: range) -> None:
    """Overwrite the middle of some JPEGs of a tar."""
    data = bytearray(shard.read_bytes())
    starts = [found.start() for found in re.finditer(b"\xff\xd8\xff", bytes(data))]
    for number in numbers:
        data[starts[number] + 20 : starts[number] + 84] = bytes(64)
    shard.write_bytes(bytes(data))


def empty_caption(shard: Path) -> None:
    """Leave nothing of the captions of the first sample of a tar."""
    data = shard.read_bytes()
    start = data.index(b'{"captions"')
    size = data.index(b"}", start) + 1 - start
    empty = json.dumps({"captions": [""]}).encode().ljust(size)
    shard.write_bytes(data[:start] + empty + data[start + size :])


def truncate(shard: Path, num_samples: int) -> None:
    """Cut a tar off after some samples."""
    data = shard.read_bytes()
    starts = [found.start() for found in re.finditer(b"\xff\xd8\xff", data)]
    shard.write_bytes(data[: starts[num_samples] - 512])


@pytest.fixture
def broken_data(tmp_path: Path) -> Path:
    """72 samples: 8 cut off, and of the other 64 one broken image and one empty caption."""
    root = tmp_path / "broken"
    write_shape_shards(root / "shapes", num_samples=72, num_shards=3, size=36)
    break_images(root / "shapes" / "shapes-000000.tar", range(5, 6))
    empty_caption(root / "shapes" / "shapes-000001.tar")
    truncate(root / "shapes" / "shapes-000002.tar", 16)
    return root


def test_train__broken_samples_are_reported(
    tiny: ModuleType, tmp_path: Path, broken_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log of every epoch, the last one included, and whatever was interrupted."""
    source = {"max_bad_fraction": 0.2}
    recipe = tiny.tiny_recipe(
        num_pairs=16 * 8,  # two epochs
        data={"source": source},
        log={"every_steps": 3},
        checkpoint={"every_steps": 7},
    )
    train(recipe, output=tmp_path / "run", data_root=broken_data)
    counts = {
        line["step"]: (line["bad_samples"], line["lost_samples"])
        for line in read_log(tmp_path / "run")
        if "bad_samples" in line
    }
    assert counts == {4: (2, 8), 8: (2, 8)}
    for part in (
        "shapes-000002.tar: samples left out: 8 truncated shard",
        "Epoch 0, rank 0: 2 samples replaced.",
        "Epoch 1, rank 0: 2 samples replaced.",
        "shapes-000000.tar: 1 broken image",
        "shapes-000001.tar: 1 empty caption",
    ):
        assert part in caplog.text, part

    expected = read_log(tmp_path / "run")[-1]
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "checkpoints" / "step_00000008.pt").unlink()
    train(recipe, output=tmp_path / "run", data_root=broken_data)
    assert read_log(tmp_path / "run")[-1]["bad_samples"] == expected["bad_samples"]


def test_train__too_many_broken_samples(
    tiny: ModuleType, tmp_path: Path, broken_data: Path
) -> None:
    break_images(broken_data / "shapes" / "shapes-000000.tar", range(6, 18))
    recipe = tiny.tiny_recipe(data={"source": {"max_bad_fraction": 0.2}})
    with pytest.raises(
        DataError, match=r"unusable in epoch 0, \d+\.\d% of them, and .*max_bad_fraction allows 20"
    ):
        train(recipe, output=tmp_path / "run", data_root=broken_data)


def test_train__fsdp_needs_processes(tiny: ModuleType, tmp_path: Path, data_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"parallel=fsdp shards weights over several processes"):
        train(tiny.tiny_recipe(parallel="fsdp"), output=tmp_path, data_root=data_root)


def test_train__no_permission(
    tiny: ModuleType, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="No permission to write"):
        train(tiny.tiny_recipe(), output=tmp_path / "run", data_root=data_root)
