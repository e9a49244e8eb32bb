from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from maskclip_bench.config import read_yaml
from maskclip_bench.data_files import declarations
from maskclip_bench.errors import ConfigError
from maskclip_bench.pretrain import trainer
from maskclip_bench.pretrain.memory import (
    RESERVE,
    Memory,
    count_memory,
    fitted,
    memory_line,
)
from maskclip_bench.pretrain.methods import METHODS, build_method
from maskclip_bench.pretrain.recipe import load_recipe, recipe_names, recorded_recipe
from maskclip_bench.pretrain.trainer import train
from maskclip_bench.testing import tiny_batch

GIB = 2**30
SMALL = ("clip_vit-s-16_yfcc15m", "slip_vit-s-16_yfcc15m")


def test_count_memory__is_what_a_real_forward_pass_saves(tiny: ModuleType) -> None:
    """In fp32 on a CPU: the same tensors are saved for a batch of real values."""
    recipe = tiny.tiny_recipe("clip")
    method = build_method("clip", {}, recipe.model).train()

    def saved(size: int) -> int:
        kept: dict[int, object] = {}
        weights = {p.untyped_storage()._cdata for p in method.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage
            return tensor

        batch = tiny_batch(num_ssl_views=0)
        images = torch.randn(size, 3, 32, 32)
        tokens = batch.tokens.new_ones(size, 16)
        tokens[:, -1] = recipe.model.text.vocab_size - 1
        batch.images, batch.tokens, batch.tokens_on_cpu = images, tokens, tokens
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = method(batch)
        del terms
        return sum(storage.nbytes() for storage in kept.values())  # type: ignore[attr-defined]

    found = count_memory(recipe)
    assert found.per_image == pytest.approx((saved(4) - saved(2)) / 2, rel=0.02)
    trained = sum(parameter.numel() for parameter in method.parameters())
    assert found.fixed == pytest.approx(16 * trained, rel=0.01)


@pytest.mark.parametrize("name", ["clip", "slip", "clip_mae", "maskclip"])
def test_count_memory__every_method(tiny: ModuleType, name: str) -> None:
    """More than CLIP's; less with checkpointing; the same every time, whatever was drawn."""
    recipe = tiny.tiny_recipe(name)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = count_memory(recipe)
    assert torch.equal(torch.get_rng_state(), before)
    assert count_memory(recipe) == found
    assert found.per_image >= count_memory(tiny.tiny_recipe("clip")).per_image
    checkpointed = count_memory(recipe.model_copy(update={"grad_checkpointing": True}))
    assert checkpointed.per_image < found.per_image
    assert checkpointed.fixed == found.fixed
    assert not torch.is_autocast_enabled("cuda")


def test_memory__with_its_reserve() -> None:
    assert Memory(fixed=100, per_image=10).of(5) == int(RESERVE * 150)
    assert Memory(fixed=100, per_image=10).of(5, shards=4) == int(RESERVE * 75)


def test_fitted__checkpointing_first_then_micro_batches(
    tiny: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny.tiny_recipe("clip", memory="auto")
    plain = count_memory(recipe)
    saving = count_memory(recipe.model_copy(update={"grad_checkpointing": True}))

    def choice(free: int) -> tuple[bool, int]:
        found = fitted(recipe, batch_size=16, free_bytes=free)
        return found.grad_checkpointing, found.accumulation_steps

    with caplog.at_level(logging.INFO):
        assert choice(plain.of(16)) == (False, 1)
    assert "memory: auto." in caplog.text
    assert "grad_checkpointing=false, accumulation_steps=1" in caplog.text
    assert choice(plain.of(16) - 1) == (True, 1)
    assert choice(saving.of(16) - 1) == (True, 2)
    assert choice(saving.of(1)) == (True, 16)
    with pytest.raises(ConfigError, match="memory: auto finds nothing that fits: one image"):
        choice(saving.of(1) - 1)


def test_train__memory_auto_is_kept_by_the_run(
    tiny: ModuleType, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen is in recipe.yaml; the run goes on with it where more memory is free."""
    recipe = tiny.tiny_recipe("clip", memory="auto", num_pairs=48)
    saving = count_memory(recipe.model_copy(update={"grad_checkpointing": True}))
    monkeypatch.setattr(trainer, "free_memory", lambda device: saving.of(16) - 1)
    train(recipe, output=tmp_path, data_root=data_root)
    there = recorded_recipe(read_yaml(tmp_path / "recipe.yaml"), where="recipe.yaml")
    assert (there.grad_checkpointing, there.accumulation_steps) == (True, 2)
    by_hand = tiny.tiny_recipe("clip", accumulation_steps=2, num_pairs=48)
    assert there.computation_fingerprint() == by_hand.computation_fingerprint()
    monkeypatch.setattr(trainer, "free_memory", lambda device: 2**40)
    (tmp_path / "model" / "provenance.json").unlink()
    train(recipe, output=tmp_path, data_root=data_root)
    assert (tmp_path / "model" / "provenance.json").is_file()


def test_memory_line() -> None:
    recipe = load_recipe("clip_vit-s-16_yfcc15m")
    assert memory_line(recipe, Memory(2 * GIB, 32 * 2**20)) == (
        "# Memory: 32 MiB an image and 2.0 GiB beside them, counted; 22 GiB each on 8 GPUs; "
        "sized for 8 x 80 GB."
    )
    assert memory_line(recipe, Memory(2 * GIB, 200 * 2**20)).endswith(
        "122 GiB each on 8 GPUs; sized for 16 x 80 GB; on 8 set memory=auto."
    )
    sharded = recipe.model_copy(update={"parallel": "fsdp"})
    assert memory_line(sharded, Memory(80 * GIB, 2**20)).endswith("sized for 8 x 80 GB.")
    assert "larger than 64 x 80 GB" in memory_line(recipe, Memory(100 * GIB, 2**20))


REAL = [name for name in recipe_names() if load_recipe(name).world == "real"]


@pytest.mark.parametrize("name", REAL)
def test_recipe__header_says_what_it_needs(name: str) -> None:
    """Those of ViT-S are counted again here; `scripts/recipe_memory.py --check` counts all."""
    text = declarations("configs/pretrain")[name].read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("# Memory:")]
    assert "sized for" in line
    if name in SMALL:
        recipe = load_recipe(name)
        assert line == memory_line(recipe, count_memory(recipe))


def test_count_memory__covers_every_method() -> None:
    assert {"clip", "slip", "clip_mae", "maskclip"} <= set(METHODS)
