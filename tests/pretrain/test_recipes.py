"""Every recipe of the catalogue: loads, builds its method, and says what it is."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch

from maskclip_bench.data.tokenizer import load_tokenizer
from maskclip_bench.data_files import declarations
from maskclip_bench.pretrain.methods import METHODS, build_method
from maskclip_bench.pretrain.recipe import Recipe, load_recipe, recipe_names

DEMO_EQUAL_PAIRS = ("demo/clip", "demo/slip", "demo/clip_mae", "demo/maskclip")


OPENAI_VIT_B_16 = 86_192_640
"""The image tower of open_clip's ViT-B-16: class token, norms before and after, projection."""


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def blocks(width: int, depth: int) -> int:
    """Pre-norm transformer blocks with an MLP four times as wide."""
    return depth * (12 * width**2 + 13 * width)


def trunk_parameters(trunk: Any) -> int:
    """A ViT with class token and learned positions; OpenAI's has a norm in place of a bias."""
    width, patch = trunk.embed_dim, trunk.patch_embed.patch_size[0]
    positions = (trunk.patch_embed.num_patches + 1) * width
    patches = linear(3 * patch**2, width)
    if trunk.patch_embed.proj.bias is None:
        patches += width
    return patches + width + positions + blocks(width, len(trunk.blocks)) + 2 * width


def model_parameters(trunk: Any, recipe: Recipe) -> int:
    """The trunk, CLIP's text tower, two projections and the logit scale."""
    text, joint = recipe.model.text, recipe.model.proj_dim
    words = (text.vocab_size + text.context_length) * text.width
    words += blocks(text.width, text.depth) + 2 * text.width + text.width * joint
    return trunk_parameters(trunk) + trunk.embed_dim * joint + words + 1


def decoder_parameters(encoder: int, width: int, depth: int, output: int) -> int:
    """Embedding, mask token, blocks, norm, head; positions are fixed."""
    inside = blocks(width, depth) + 2 * width
    return linear(encoder, width) + width + inside + linear(width, output)


def quantizer_parameters(width: int, config: Any, *, depth: int = 3) -> int:
    hidden = config.codeword_hidden_dim
    widths = [width, *[hidden] * (depth - 1), config.codeword_dim]
    layers = sum(linear(*pair) for pair in itertools.pairwise(widths))
    return layers + config.num_codewords * config.codeword_dim


def extra_parameters(trunk: Any, recipe: Recipe) -> int:
    """What a method has beside the model, from its widths and depths."""
    name = recipe.method.name
    config: Any = METHODS[name].Config(**recipe.method.fields)
    width, pixels = trunk.embed_dim, 3 * trunk.patch_embed.patch_size[0] ** 2
    if name in ("slip", "simclr"):
        hidden = config.ssl_hidden_dim
        layers = linear(width, hidden) + linear(hidden, hidden) + 4 * hidden
        return layers + linear(hidden, config.ssl_output_dim)
    if name in ("clip_mae", "mae"):
        inner = config.decoder_dim or width
        return decoder_parameters(width, inner, config.decoder_depth, pixels)
    if name == "simmim":
        return width + linear(width, pixels)
    if name == "mvp":
        quantizers = 2 * quantizer_parameters(768, config)
        return OPENAI_VIT_B_16 + width + linear(width, 768) + quantizers
    if name != "maskclip":
        return 0
    total = 0
    if config.distillation_weight:
        output = pixels if config.target == "pixels" else width
        total += decoder_parameters(
            width, config.decoder_dim or width, config.decoder_depth, output
        )
        if config.full_ema:
            total += model_parameters(trunk, recipe) - trunk_parameters(trunk)
        if config.target == "ema_features" and config.teacher != "momentum_head":
            frozen = config.teacher == "open_clip"
            total += OPENAI_VIT_B_16 if frozen else trunk_parameters(trunk)
        if config.loss == "cross_entropy" and config.target != "pixels":
            total += 2 * quantizer_parameters(width, config, depth=config.codeword_depth)
    if config.mlm_weight:
        text, depth = recipe.model.text, config.text_decoder_depth
        total += text.width + blocks(text.width, depth) + (2 * text.width if depth else 0)
        total += text.vocab_size
    return total


@pytest.mark.parametrize("name", recipe_names())
def test_recipe__builds_its_method_on_the_meta_device(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        method = build_method(recipe.method.name, recipe.method_fields(), recipe.model)
    trunk: Any = method.model.visual.trunk
    assert next(method.parameters()).is_meta
    assert trunk.patch_embed.img_size[0] == recipe.model.image_size
    found = sum(parameter.numel() for parameter in method.model.parameters())
    assert found == model_parameters(trunk, recipe)
    whole = sum(parameter.numel() for parameter in method.parameters())
    assert whole - found == extra_parameters(trunk, recipe)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe__vocabulary_is_the_tokenizers(name: str) -> None:
    recipe = load_recipe(name)
    assert load_tokenizer(recipe.tokenizer).vocab_size == recipe.model.text.vocab_size


@pytest.mark.parametrize("name", recipe_names())
def test_recipe__header(name: str) -> None:
    text = declarations("configs/pretrain")[name].read_text(encoding="utf-8")
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    study, _, row = name.rpartition("/")
    command = rf"\b{re.escape(name)}\b|\bstudy run {re.escape(study)} --row {re.escape(row)}\b"
    assert re.search(rf"^# Command: .*({command})", header, re.MULTILINE), "no command"
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
