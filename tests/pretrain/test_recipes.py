"""Every recipe of the catalogue: loads, builds its model, and says what it is."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from maskclip_bench.data.tokenizer import load_tokenizer
from maskclip_bench.data_files import declarations
from maskclip_bench.modeling.model import build_model
from maskclip_bench.pretrain.recipe import Recipe, load_recipe, recipe_names

DEMO_EQUAL_PAIRS = ("demo/clip", "demo/slip", "demo/clip_mae", "demo/maskclip")


def implied_parameters(trunk: Any, recipe: Recipe) -> int:
    """Parameters of a ViT (class token, learned positions, MLP ratio 4) and CLIP's text tower."""
    width, depth = trunk.embed_dim, len(trunk.blocks)
    patch, num_patches = trunk.patch_embed.patch_size[0], trunk.patch_embed.num_patches

    def blocks(width: int, depth: int) -> int:
        return depth * (12 * width**2 + 13 * width)

    vision = 3 * patch**2 * width + width  # patches
    vision += width + (num_patches + 1) * width  # class token, positions
    vision += blocks(width, depth) + 2 * width + width * recipe.model.proj_dim
    text = recipe.model.text
    words = (text.vocab_size + text.context_length) * text.width
    words += blocks(text.width, text.depth) + 2 * text.width + text.width * recipe.model.proj_dim
    return vision + words + 1  # the logit scale


@pytest.mark.parametrize("name", recipe_names())
def test_recipe__builds_on_the_meta_device(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = build_model(recipe.model)
    trunk = model.visual.trunk
    assert next(model.parameters()).is_meta
    assert model.visual.trunk.patch_embed.img_size[0] == recipe.model.image_size
    if type(trunk).__name__ == "VisionTransformer" and trunk.cls_token is not None:
        found = sum(parameter.numel() for parameter in model.parameters())
        assert found == implied_parameters(trunk, recipe)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe__vocabulary_is_the_tokenizers(name: str) -> None:
    recipe = load_recipe(name)
    assert load_tokenizer(recipe.tokenizer).vocab_size == recipe.model.text.vocab_size


@pytest.mark.parametrize("name", recipe_names())
def test_recipe__header(name: str) -> None:
    text = declarations("configs/pretrain")[name].read_text(encoding="utf-8")
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert re.search(rf"^# Command: .*\b{re.escape(name)}\b", header, re.MULTILINE), "no command"
    assert re.search(r"^# (Row|Paper row)", header, re.MULTILINE), "no row it aims at"
    assert re.search(r"[Cc]ost", header), "no expected cost"


def test_demo_recipes__equal_pairs_and_setting() -> None:
    recipes = [load_recipe(name) for name in DEMO_EQUAL_PAIRS]
    first = recipes[0]
    for recipe in recipes:
        assert recipe.num_pairs == first.num_pairs
        assert recipe.model == first.model
        assert recipe.global_batch_size == first.global_batch_size
        assert recipe.data.source == first.data.source
    equal_cost = load_recipe("demo/clip_equal_cost")
    assert equal_cost.num_pairs is not None
    assert first.num_pairs is not None
    assert equal_cost.num_pairs > first.num_pairs
    assert equal_cost.method == first.method
