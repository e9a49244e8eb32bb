"""Recipes and circumstances that nobody would wish for: refused with a remedy, or done right."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from maskclip_bench.config import merge, validate
from maskclip_bench.data.shapes import write_shape_shards
from maskclip_bench.errors import ConfigError, DataError, TrainingError
from maskclip_bench.pretrain import trainer
from maskclip_bench.pretrain.assembly import tokenizer_of
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.methods.clip import CLIP
from maskclip_bench.pretrain.recipe import Recipe, load_recipe
from maskclip_bench.pretrain.run_length import batch_size_per_gpu
from maskclip_bench.pretrain.trainer import train
from maskclip_bench.progress import Snapshot
from maskclip_bench.training.logs import read_log

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "lr is not a number": ("clip", {"optimizer": {"lr": math.nan}}, r"'optimizer.lr': Input.*fini"),
    "lr is 0": (
        "clip",
        {"optimizer": {"lr": 0}},
        r"'optimizer.lr': Input should be greater than 0",
    ),
    "lr below where its warm-up starts": (
        "clip",
        {"optimizer": {"lr": 1e-7, "min_lr": 0}},
        r"start_lr 1e-06 is larger than lr 1e-07; lower it too",
    ),
    "no steps": ("clip", {"num_pairs": 0}, r"'num_pairs': Input should be greater than 0"),
    "less than one batch": (
        "clip",
        {"num_pairs": 15},
        r"num_pairs 15 is less than one batch of 16",
    ),
    "two lengths": ("clip", {"epochs": 2}, r"give one of epochs and num_pairs.*num_pairs=null"),
    "no length": ("clip", {"num_pairs": None}, r"give one of epochs and num_pairs, and not both"),
    "epochs beyond all numbers": (
        "clip",
        {"epochs": 1e308, "num_pairs": None},
        r"'epochs': Input should be less than or equal to 1000000",
    ),
    "a warm-up beyond all numbers": (
        "clip",
        {"optimizer": {"warmup_epochs": 1e308, "warmup_steps": None}},
        r"'optimizer.warmup_epochs': Input should be less than or equal to 1000000",
    ),
    "micro-batches do not divide": (
        "clip",
        {"accumulation_steps": 3},
        r"global_batch_size 16 is not a multiple of accumulation_steps 3",
    ),
    "nothing to compare": (
        "slip",
        {"global_batch_size": 1},
        r"global_batch_size is 1, and slip compares samples with each other; give at least 2",
    ),
    "a negative weight": (
        "slip",
        {"method": {"ssl_weight": -1}},
        r"ssl_weight.*greater than or eq",
    ),
    "a negative lambda": (
        "maskclip",
        {"method": {"distillation_weight": -0.05}},
        r"distillation_weight.*greater than or equal to 0",
    ),
    "no contrast": ("maskclip", {"method": {"contrastive_weight": 0}}, r"weight.*greater than 0"),
    "everything hidden": ("mae", {"method": {"mask_ratio": 1}}, r"mask_ratio.*less than 1"),
    "a temperature of 0": ("mvp", {"method": {"teacher_temp": 0}}, r"teacher_temp.*greater than 0"),
    "no joint space": ("clip", {"model": {"proj_dim": 0}}, r"'model.proj_dim'.*equal to 1"),
    "no heads": ("clip", {"model": {"text": {"num_heads": 0}}}, r"'model.text.num_heads'.*equal"),
    "no blocks": ("clip", {"model": {"text": {"depth": 0}}}, r"'model.text.depth'.*equal to 1"),
    "heads of half a number": (
        "clip",
        {"model": {"text": {"num_heads": 3}}},
        r"'model.text': width 32 is not a multiple of num_heads 3",
    ),
    "a seed below 0": ("clip", {"seed": -1}, r"'seed': Input should be greater than or equal to 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_recipe__refused_before_anything_is_done(tiny: ModuleType, case: str) -> None:
    method, changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        validate(merge(tiny.tiny_values(method), changes), Recipe, where="tiny recipe")


def test_recipe__two_lengths_on_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"the other is null \(epochs=5 num_pairs=null\)"):
        load_recipe("demo/clip", ["epochs=5"])
    assert load_recipe("demo/clip", ["epochs=5", "num_pairs=null"]).epochs == 5


NOT_BUILT: dict[str, tuple[str, dict[str, Any], str]] = {
    "heads of the decoder": (
        "clip_mae",
        {"method": {"decoder_num_heads": 3}},
        r"The vision decoder is 32 wide .* not a multiple of its 3 heads \(method.decoder_num_head",
    ),
    "more codewords than memory": (
        "maskclip",
        {"method": {"num_codewords": 10**13}},
        r"Method 'maskclip' cannot be built: .*Check the sizes under method and model",
    ),
    "a trunk without stochastic depth": (
        "clip",
        {"model": {"vision": {"timm_model": "vgg11", "drop_path_rate": 0.1}, "image_size": 224}},
        r"A model with the trunk vgg11 cannot be built: .*drop_path_rate.*Check model.vision",
    ),
}


@pytest.mark.parametrize("case", NOT_BUILT)
def test_build_method__refused(tiny: ModuleType, case: str) -> None:
    name, changes, message = NOT_BUILT[case]
    recipe = validate(merge(tiny.tiny_values(name), changes), Recipe, where="tiny recipe")
    with pytest.raises(ConfigError, match=message):
        build_method(name, recipe.method_fields(), recipe.model, tokenizer_of(recipe))


def test_batch_size_per_gpu__one_sample_has_no_variance(tiny: ModuleType) -> None:
    assert batch_size_per_gpu(tiny.tiny_recipe("clip"), 16) == 1
    assert batch_size_per_gpu(tiny.tiny_recipe("slip"), 8) == 2
    with pytest.raises(ConfigError, match=r"leaves one sample for each of 16 processes.*least 32"):
        batch_size_per_gpu(tiny.tiny_recipe("slip"), 16)


def test_train__warm_up_longer_than_the_run(
    tiny: ModuleType, tmp_path: Path, data_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny.tiny_recipe(num_pairs=32, optimizer={"warmup_steps": 100})
    train(recipe, output=tmp_path, data_root=data_root)
    assert "The warm-up has 100 steps and the run 2: the learning rate never" in caplog.text
    rates = [line["lr"] for line in read_log(tmp_path)]
    assert rates == pytest.approx([1e-6, 1e-6 + (1e-3 - 1e-6) / 100])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
    ],
    ids=["gpu", "python", "cpu"],
)
def test_train__out_of_memory(
    tiny: ModuleType,
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def contrast(method: CLIP, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        raise error

    monkeypatch.setattr(CLIP, "contrast", contrast)
    with pytest.raises(
        TrainingError, match=r"Memory ran out with 8 images in a micro-batch \(.*"
    ) as (caught):
        train(tiny.tiny_recipe(accumulation_steps=2), output=tmp_path, data_root=data_root)
    assert "a larger accumulation_steps (now 2)" in str(caught.value)
    assert "more" not in str(caught.value)


def test_train__another_error_is_not_one_of_memory(
    tiny: ModuleType, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contrast(method: CLIP, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(CLIP, "contrast", contrast)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(tiny.tiny_recipe(), output=tmp_path, data_root=data_root)


def test_resume__folder_moved_and_a_shard_missing(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moved run goes on; without one of its shards it does not, and says which."""
    root = tmp_path / "data"
    write_shape_shards(root / "shapes", num_samples=72, num_shards=2, size=36)
    recipe = tiny.tiny_recipe(num_pairs=64)
    train(recipe, output=tmp_path / "whole", data_root=root)
    told = trainer.Report.__call__

    def stop(report: Any, state: Snapshot, *, force: bool) -> None:
        told(report, state, force=force)
        if state.step == 3:
            raise KeyboardInterrupt  # at once, as the second Ctrl-C

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Report, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, output=tmp_path / "begun", data_root=root)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "begun", tmp_path / "elsewhere" / "moved")
    shard = root / "shapes" / "shapes-000001.tar"
    shard.rename(root / "away.tar")
    with pytest.raises(DataError, match=r"shapes-000001.tar"):
        train(recipe, output=tmp_path / "elsewhere" / "moved", data_root=root)
    (root / "away.tar").rename(shard)
    train(recipe, output=tmp_path / "elsewhere" / "moved", data_root=root)
    found, expected = (
        [line["loss"] for line in read_log(tmp_path / name)]
        for name in ("elsewhere/moved", "whole")
    )
    assert found == expected
