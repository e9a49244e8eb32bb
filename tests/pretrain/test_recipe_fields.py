"""Every field of a recipe that should decide the numbers does, and no other; methods' own are in
`methods/test_fields.py`, those of the augmentation in `data/test_augment.py`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from maskclip_bench.config import merge, validate
from maskclip_bench.data.batch import RawBatch
from maskclip_bench.pretrain.assembly import tokenizer_of
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.recipe import OptimizerSection, Recipe

OPTIMIZER: dict[str, Any] = {
    "lr": 2e-3,
    "weight_decay": 0.5,
    "betas": [0.8, 0.98],
    "eps": 1e-3,
    "warmup_steps": 1,
    "warmup_epochs": 1.0,
    "start_lr": 1e-4,
    "min_lr": 5e-4,
    "clip_grad_norm": 1e-3,
    "layer_decay": 0.5,
}
DECISIVE: dict[str, dict[str, Any]] = {
    **{f"optimizer.{name}": {"optimizer": {name: value}} for name, value in OPTIMIZER.items()},
    "num_pairs": {"num_pairs": 16 * 20},
    "epochs": {"epochs": 5, "num_pairs": None},
    "seed": {"seed": 1},
    "precision": {"precision": "bf16"},
    "accumulation_steps": {"accumulation_steps": 2},  # micro-batches draw their own masks
}
DECISIVE["optimizer.warmup_epochs"]["optimizer"]["warmup_steps"] = None
WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "name": {"name": "other"},
    "description": {"description": "other"},
    "checkpoint": {"checkpoint": {"every_steps": 1, "keep": 1, "sharded": True}},
    "log": {"log": {"every_steps": 3, "tensorboard": True}},
    "memory": {"memory": "auto"},
    "max_nonfinite_steps": {"max_nonfinite_steps": 3},
    "evaluation": {"evaluation": {"every_epochs": 1.0}},
}
ELSEWHERE = {
    "world": "of the catalogue",
    "method": "methods/test_fields.py",
    "model": "methods/test_fields.py",
    "init": "test_init_weights.py",
    "tokenizer": "follows the model",
    "data": "tests/data",
    "global_batch_size": "decides the batches",
    "parallel": "test_parallel.py",
    "compile": "test_assembly.py",
    "grad_checkpointing": "test_trainer.py",
}


def outcome(tiny: ModuleType, changes: dict[str, Any]) -> list[float]:
    """Losses of five steps, the same images and captions for all."""
    values = merge(tiny.tiny_values("maskclip"), changes)
    recipe = validate(values, Recipe, where="tiny recipe")
    torch.manual_seed(0)
    method = build_method("maskclip", recipe.method_fields(), recipe.model, tokenizer_of(recipe))
    stepper = tiny.tiny_stepper(recipe, method, batches_per_epoch=4)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, 20, (8, 6), generator=generator)
    tokens[:, -1] = recipe.model.text.vocab_size - 1
    parts = recipe.accumulation_steps
    raws = [
        RawBatch(image, caption, (), [str(number) for number in range(8 // parts)])
        for image, caption in zip(images.chunk(parts), tokens.chunk(parts), strict=True)
    ]
    results = [
        result
        for step in range(5)
        for result in stepper(stepper.preparation(raws, step=step), stop=False)
    ]
    return [result.terms["loss"] for result in results]


@pytest.fixture(scope="module")
def plain(tiny: ModuleType) -> list[float]:
    return outcome(tiny, {})


def test_fields__all_are_here() -> None:
    assert OPTIMIZER.keys() == OptimizerSection.model_fields.keys()
    here = {name.partition(".")[0] for name in (*DECISIVE, *WITHOUT_EFFECT, *ELSEWHERE)}
    assert here == Recipe.model_fields.keys()


@pytest.mark.parametrize("name", DECISIVE)
def test_field__changes_the_numbers_and_the_fingerprint(
    tiny: ModuleType, plain: list[float], name: str
) -> None:
    assert outcome(tiny, DECISIVE[name]) != plain
    assert fingerprint(tiny, DECISIVE[name]) != fingerprint(tiny, {})


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_field__changes_no_number(tiny: ModuleType, plain: list[float], name: str) -> None:
    assert outcome(tiny, WITHOUT_EFFECT[name]) == plain


def fingerprint(tiny: ModuleType, changes: dict[str, Any]) -> str:
    values = merge(tiny.tiny_values("maskclip"), changes)
    return validate(values, Recipe, where="tiny recipe").computation_fingerprint()
