"""What a run is made of, from its recipe: the tokenizer, the strategy, the optimizer.

**Compiled.** `encode`, with both towers, teacher, decoders and the losses of each sample, becomes
one graph, as does `embed` where there are micro-batches. Sizes that captions decide (their longest,
the words of all of them, the masked ones) are marked as changing from step to step, so that nothing
is compiled again after the first step. Over shards (FSDP2), which are gathered block by block, the
blocks of trunks, text tower and decoders are compiled one by one instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from maskclip_bench.data.batch import Batch
from maskclip_bench.data.tokenizer import CaptionTokenizer, load_tokenizer
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.blocks import PackedCausalBlock
from maskclip_bench.modeling.packing import ChosenWords, PackedLayout
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
    if recipe.compile and recipe.parallel == "fsdp":
        compile_blocks(method)
    elif recipe.compile:
        compile_whole(method)
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


def compile_whole(method: Method) -> None:
    """Compile `encode`, and `embed` where it is another function, as one graph each.

    Torch raises where a method cannot be one graph, or would be compiled again and again: nothing
    runs uncompiled without a word.
    """
    from torch._inductor import config as inductor

    inductor.fallback_random = True  # stochastic depth draws what it draws uncompiled
    # Torch cuts a graph where DDP would exchange gradients, unless it has functions with a backward
    # pass of their own, as the codewords' loss. Uncut, they are exchanged after the backward pass.
    torch._dynamo.config.optimize_ddp = False
    names = ["encode"]
    if type(method).embed is not Method.embed:  # that one calls `encode`
        names.append("embed")
    for name in names:
        compiled = torch.compile(getattr(method, name), fullgraph=True, backend=COMPILE_BACKEND)
        setattr(method, name, partial(_with_sizes_that_change, compiled))


def compile_blocks(method: Method) -> None:
    """Compile the blocks of trunks, text tower and decoders one by one.

    Blocks share their code, so its variants (whole and visible images, only the class token, packed
    captions, train and evaluation, decoders) count together; beyond the limit, which is 8 by
    default, torch runs a block uncompiled without a word.
    """
    torch._dynamo.config.recompile_limit = max(
        VARIANTS_OF_A_BLOCK, torch._dynamo.config.recompile_limit
    )
    blocks: list[nn.Module] = list(transformer_blocks(method))
    blocks += [module for module in method.modules() if isinstance(module, PackedCausalBlock)]
    for block in blocks:
        block.compile(backend=COMPILE_BACKEND)
        # Marked outside of what is compiled; a copy of the block runs uncompiled, as torch has it.
        compiled: Any = block._compiled_call_impl
        block._compiled_call_impl = partial(_block_with_sizes_that_change, compiled)


def _with_sizes_that_change(compiled: Callable[[Batch], Any], batch: Batch) -> Any:
    """Call a compiled function, with the sizes marked that captions decide."""
    if torch.compiler.is_compiling():  # called by the other one, of which it becomes a part
        return compiled(batch)
    changing = [(batch.tokens, 1)]
    for drawn in (batch.drawn or {}).values():
        if isinstance(drawn, PackedLayout):
            changing += _changing_sizes(drawn)
        elif isinstance(drawn, ChosenWords):
            parts = (drawn.places, drawn.fate, drawn.others)
            changing += [(part, 0) for part in parts if part is not None]
    _mark(changing)
    return compiled(batch)


def _block_with_sizes_that_change(
    compiled: Callable[..., Tensor], tokens: Tensor, *arguments: Any, **options: Any
) -> Tensor:
    """Call a compiled block, with the sizes marked that captions decide, if it is on captions."""
    layout, mask = options.get("layout"), options.get("attn_mask")
    if layout is not None:  # the text tower: [K, W]
        _mark([(tokens, 0), *_changing_sizes(layout)])
    elif mask is not None:  # the text decoder: [T, L, W] and [T, 1, L, L]
        _mark([(tokens, 1), (mask, 2), (mask, 3)])
    return compiled(tokens, *arguments, **options)


def _changing_sizes(layout: PackedLayout) -> list[tuple[Tensor, int]]:
    """Tensors of a layout, and the dimension of each that changes from step to step."""
    return [(layout.slots, 0), (layout.positions, 0), (layout.is_word, 1)]


def _mark(changing: Iterable[tuple[Tensor, int]]) -> None:
    for tensor, dimension in changing:
        torch._dynamo.maybe_mark_dynamic(tensor, dimension)
