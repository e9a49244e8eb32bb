"""Presets hold the published hyperparameters; a changed one has another name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from maskclip_bench.errors import ConfigError
from maskclip_bench.tasks.finetuning.recipe import (
    FINETUNE_PRESETS,
    PROBE_PRESETS,
    TrainRecipe,
    preset_name,
    with_options,
)


def test_presets__published_hyperparameters() -> None:
    """From SLIP's README 5.2, MAE's FINETUNE.md, FT-CLIP's README and main_linear.py."""
    names = ("slip_beit", "slip_beit_small", "slip_beit_large", "mae", "ft_clip")
    slip, small, large, mae, ft_clip = (FINETUNE_PRESETS[name] for name in names)
    for recipe, values in (
        (slip, (100, 1024, 4e-3, 20, 0.65, 0.1, 0.05, 0.8, 1.0)),
        (small, (100, 1024, 4e-3, 20, 0.65, 0.0, 0.05, 0.8, 1.0)),
        (large, (50, 1024, 4e-3, 5, 0.75, 0.1, 0.05, 0.8, 1.0)),
        (mae, (100, 1024, 5e-4 * 1024 / 256, 5, 0.65, 0.1, 0.05, 0.8, 1.0)),
        (ft_clip, (50, 2048, 6e-4, 10, 0.6, 0.0, 0.05, 0.0, 0.0)),
    ):
        assert values == (
            recipe.epochs,
            recipe.global_batch_size,
            recipe.lr,
            recipe.warmup_epochs,
            recipe.layer_decay,
            recipe.drop_path,
            recipe.weight_decay,
            recipe.augmentation.mixup,
            recipe.augmentation.cutmix,
        )
        assert recipe.augmentation.auto_augment == "rand-m9-mstd0.5-inc1"
        assert recipe.augmentation.erase_prob == 0.25
        assert recipe.label_smoothing == 0.1
    assert (ft_clip.ema_decay, slip.ema_decay, mae.ema_decay) == (0.9998, None, None)
    assert PROBE_PRESETS["slip_sgd"].lr == 0.1 * int(128 / 8) / 256
    assert PROBE_PRESETS["slip_sgd_intended"].lr == 0.1 * 1024 / 256
    assert PROBE_PRESETS["mae_lars"].lr == pytest.approx(0.1 * 16384 / 256)


def test_with_options__nested_and_unknown() -> None:
    recipe = FINETUNE_PRESETS["slip_beit"]
    changed = with_options(recipe, {"epochs": 3, "augmentation.mixup": 0}, where="here")
    assert (changed.epochs, changed.augmentation.mixup, changed.augmentation.cutmix) == (3, 0, 1)
    assert changed.lr == recipe.lr
    assert with_options(recipe, {}, where="here") == recipe
    for wrong in ({"augmentation.mixupp": 0}, {"epoch": 3}, {"lr.x": 1}, {"lr": -1}):
        with pytest.raises(ConfigError, match="here is not a valid TrainRecipe"):
            with_options(recipe, wrong, where="here")


def test_preset_name__a_changed_preset_is_another() -> None:
    assert preset_name("mae", {}) == "mae"
    one, two = preset_name("mae", {"epochs": 1}), preset_name("mae", {"epochs": 2})
    assert one != two
    assert one.startswith("mae+own-")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"head": "zero_shot"}, "the head zero_shot reads the joint embedding"),
        ({"pooling": "joint"}, "the head zero_shot reads the joint embedding"),
        ({"trained": "head", "drop_path": 0.1}, "a frozen backbone has no drop_path"),
        ({"trained": "head", "layer_decay": 0.5}, "a frozen backbone has no drop_path"),
    ],
)
def test_recipe__what_does_not_fit(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        TrainRecipe(lr=1.0, **fields)
