"""What a run is made of, from its recipe: the tokenizer, the strategy, the optimizer."""

from __future__ import annotations

from functools import partial

import torch

from maskclip_bench.data.tokenizer import CaptionTokenizer, load_tokenizer
from maskclip_bench.errors import ConfigError
from maskclip_bench.pretrain.export import models_of
from maskclip_bench.pretrain.methods.base import STUDENT, Method
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.training.layer_decay import layer_scales
from maskclip_bench.training.optim import build_optimizer
from maskclip_bench.training.parallel import (
    DDPStrategy,
    FSDPStrategy,
    ParallelStrategy,
    transformer_blocks,
)

COMPILE_BACKEND = "inductor"
"""torch's own default."""

VARIANTS_OF_A_BLOCK = 64
"""That torch compiles at most; MaskCLIP with micro-batches has more than the default of 8."""


def tokenizer_of(recipe: Recipe) -> CaptionTokenizer:
    """The recipe's tokenizer.

    Raises:
        ConfigError: Its vocabulary is not the model's.
    """
    tokenizer = load_tokenizer(recipe.tokenizer)
    if tokenizer.vocab_size != recipe.model.text.vocab_size:
        raise ConfigError(
            f"The {recipe.tokenizer.kind} tokenizer has {tokenizer.vocab_size} tokens, and "
            f"model.text.vocab_size is {recipe.model.text.vocab_size}. Make them equal."
        )
    return tokenizer


def prepare(
    recipe: Recipe, method: Method, device: torch.device
) -> tuple[ParallelStrategy, torch.optim.Optimizer]:
    """Put the method on the device, copy or shard it over several, and make its optimizer."""
    method.to(device).train()
    if recipe.grad_checkpointing:
        method.model.set_grad_checkpointing(True)
    no_weight_decay = method.parameters_without_weight_decay()
    section = recipe.optimizer
    scales = layer_scales(method.model, section.layer_decay) if section.layer_decay else {}
    lr_scales = {f"{STUDENT}.{name}": scale for name, scale in scales.items()}
    if recipe.compile:
        # Blocks of one class share their code, so its variants (whole and visible images, only the
        # class token, train and evaluation, decoders) count together; beyond the limit, which is 8
        # by default, torch runs a block uncompiled without a word.
        torch._dynamo.config.recompile_limit = max(
            VARIANTS_OF_A_BLOCK, torch._dynamo.config.recompile_limit
        )
        for block in transformer_blocks(method):
            block.compile(backend=COMPILE_BACKEND)
    strategy: ParallelStrategy
    if recipe.parallel == "fsdp":
        strategy = FSDPStrategy(
            method,
            device=device,
            bf16=recipe.precision == "bf16",
            methods=("embed", "encode", "contrast"),
            rebuild=partial(models_of, recipe=recipe, where="this run"),
        )
    else:
        accumulates = recipe.accumulation_steps > 1
        strategy = DDPStrategy(method, device=device, accumulates=accumulates)
    optimizer = build_optimizer(
        method,
        lr=section.lr,
        weight_decay=section.weight_decay,
        betas=section.betas,
        eps=section.eps,
        no_weight_decay=no_weight_decay,
        lr_scales=lr_scales,
    )
    return strategy, optimizer
