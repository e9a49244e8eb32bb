"""Steps and rates against what the public scripts compute, written here in their own terms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from maskclip_bench.errors import ConfigError
from maskclip_bench.tasks.finetuning.recipe import FINETUNE_PRESETS, PROBE_PRESETS, TrainRecipe
from maskclip_bench.tasks.finetuning.schedule import TrainLength, rate_at
from tests.tasks.finetuning.tiny import tiny_recipe


def rates(recipe: TrainRecipe, num_images: int) -> tuple[list[float], TrainLength]:
    length = TrainLength.of(recipe, num_images=num_images)
    return [rate_at(step, recipe, length) for step in range(length.total_steps)], length


@pytest.mark.parametrize("preset", ["mae", "mae_lars"])
def test_rate__mae(preset: str) -> None:
    """A function of the epoch with its fraction, warm-up from 0, half a cosine to `min_lr`."""
    recipe = {**FINETUNE_PRESETS, **PROBE_PRESETS}[preset]
    found, length = rates(recipe, 3 * recipe.global_batch_size + 5)
    assert length.steps_per_epoch == 3
    expected = []
    for step in range(length.total_steps):
        epoch = step / 3
        if epoch < recipe.warmup_epochs:
            expected.append(recipe.lr * epoch / recipe.warmup_epochs)
        else:
            share = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
            half = 0.5 * (1 + math.cos(math.pi * share))
            expected.append(recipe.min_lr + (recipe.lr - recipe.min_lr) * half)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("preset", ["slip_beit", "ft_clip"])
def test_rate__beit(preset: str) -> None:
    """The warm-up is `linspace` with both ends; the cosine begins at the full rate again."""
    recipe = FINETUNE_PRESETS[preset]
    found, length = rates(recipe, 2 * recipe.global_batch_size)
    warmup = np.linspace(0, recipe.lr, length.warmup_steps)
    rest = length.total_steps - length.warmup_steps
    cosine = 0.5 * (1 + np.cos(math.pi * np.arange(rest) / rest))
    expected = [*warmup, *(recipe.min_lr + (recipe.lr - recipe.min_lr) * cosine)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_rate__slip_linear_changes_once_an_epoch() -> None:
    recipe = PROBE_PRESETS["slip_sgd"]
    found, _ = rates(recipe, 4 * recipe.global_batch_size)
    expected = [
        recipe.lr * 0.5 * (1 + math.cos(math.pi * epoch / 90))
        for epoch in range(90)
        for _ in "1234"
    ]
    assert found == pytest.approx(expected)


def test_rate__wise_ft() -> None:
    recipe = FINETUNE_PRESETS["wise_ft"].model_copy(update={"warmup_epochs": 0.5})
    found, length = rates(recipe, 10 * recipe.global_batch_size)
    expected = [
        recipe.lr * (step + 1) / 5
        if step < 5
        else recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - 5) / (length.total_steps - 5)))
        for step in range(length.total_steps)
    ]
    assert found == pytest.approx(expected)


def test_length__micro_batches_divide_the_batch() -> None:
    recipe = tiny_recipe(global_batch_size=12, micro_batch_size=5, augmentation={})
    length = TrainLength.of(recipe, num_images=30)
    assert (length.micro_batch_size, length.micro_batches) == (4, 3)
    assert (length.steps_per_epoch, length.total_steps, length.warmup_steps) == (2, 6, 2)
    shared = TrainLength.of(recipe, num_images=30, world_size=4)
    assert (shared.micro_batch_size, shared.micro_batches) == (3, 4)


def test_length__what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"has 5 images, and one step takes 6.*at most 5"):
        TrainLength.of(tiny_recipe(), num_images=5)
    with pytest.raises(ConfigError, match=r"batch of 6 images cannot be divided among 4 processes"):
        TrainLength.of(tiny_recipe(), num_images=60, world_size=4)
    with pytest.raises(ConfigError, match=r"Mixup mixes images two by two.*has 3"):
        TrainLength.of(tiny_recipe(micro_batch_size=3), num_images=60, world_size=2)
