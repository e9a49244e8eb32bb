"""How much memory a recipe needs, counted without a device, and what makes it fit (`memory: auto`).

What a step keeps for its backward pass is counted on tensors that have a shape and no values
(torch's fake tensors, as if on a GPU): the bytes that a forward pass saves, in the recipe's
precision, with fused attention, for two small batches; their difference is the cost of an image.
The same number comes out on every machine. Weights, gradients and AdamW's moments are counted
beside it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from maskclip_bench import distributed
from maskclip_bench.data.batch import Batch, Draw, with_tensors
from maskclip_bench.errors import ConfigError, TrainingError, first_line
from maskclip_bench.modeling import blocks
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.recipe import Recipe

logger = logging.getLogger(__name__)

SMALL_BATCHES = (2, 4)
NUM_TOKENS = 16
"""Tokens of each caption: YFCC15M's have 12 words on average, a start and an end."""

RESERVE = 1.2
"""What is planned for over what is counted: gradients of activations, the allocator's gaps, the
loaders' copies. On an H100 the peak was 1.00 to 1.11 of what is counted (benchmarks/gpu.md)."""

CUDA = "cuda"

CHOSEN = ("grad_checkpointing", "accumulation_steps")
"""Fields of a recipe that `memory: auto` sets."""


@dataclass(frozen=True)
class Memory:
    """What a recipe needs on one GPU, in bytes.

    Attributes:
        fixed: Weights in fp32 and, for bf16, in 16 bits; gradients, AdamW's moments, frozen copies.
        per_image: Kept for the backward pass, for each image of a micro-batch.
    """

    fixed: int
    per_image: int

    def of(self, batch_size: int, *, shards: int = 1) -> int:
        """Bytes that a GPU needs, the reserve included.

        Args:
            batch_size: Images of a micro-batch.
            shards: GPUs that share what is fixed (`parallel: fsdp`).
        """
        return int(RESERVE * (self.fixed / shards + self.per_image * batch_size))


def count_memory(recipe: Recipe) -> Memory:
    """Count what a recipe needs; takes seconds, whatever its size.

    Args:
        recipe: Its model, method, precision and `grad_checkpointing` decide.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        method = build_method(recipe.method.name, recipe.method_fields(), recipe.model).train()
    with mode:
        method._apply(lambda tensor: torch.empty_like(tensor, device=CUDA))
    if recipe.grad_checkpointing:
        method.model.set_grad_checkpointing(True)
    with torch.random.fork_rng(devices=[]):
        kept = [_kept_bytes(method, recipe, size, mode) for size in SMALL_BATCHES]
    small, large = SMALL_BATCHES
    return Memory(_fixed_bytes(method, recipe), round((kept[1] - kept[0]) / (large - small)))


def fitted(recipe: Recipe, *, batch_size: int, free_bytes: int, shards: int = 1) -> Recipe:
    """The recipe with what makes it fit: first `grad_checkpointing`, then `accumulation_steps`.

    Checkpointing comes first because it changes no number. Micro-batches draw their own masks, so
    that the recipe that is recorded has the number of them that was chosen.

    Args:
        recipe: With `memory: auto`.
        batch_size: Pairs of a step on one device.
        free_bytes: Of the device.
        shards: Devices that share weights and moments (`parallel: fsdp`).

    Raises:
        ConfigError: Nothing makes it fit.
    """
    needed = 0
    for checkpointing in (False, True):
        changed = recipe.model_copy(update={"grad_checkpointing": checkpointing})
        memory = count_memory(changed)
        for accumulation in _divisors(batch_size) if checkpointing else [1]:
            needed = memory.of(batch_size // accumulation, shards=shards)
            if needed <= free_bytes:
                logger.info(
                    "memory: auto. %.1f GiB are free; %.1f MiB an image and %.1f GiB beside them "
                    "are counted: grad_checkpointing=%s, accumulation_steps=%d, about %.1f GiB.",
                    free_bytes / 2**30,
                    memory.per_image / 2**20,
                    memory.fixed / 2**30,
                    str(checkpointing).lower(),
                    accumulation,
                    needed / 2**30,
                )
                return changed.model_copy(update={"accumulation_steps": accumulation})
    raise ConfigError(
        f"memory: auto finds nothing that fits: one image at a time, with checkpointing, needs "
        f"about {needed / 2**30:.1f} GiB, and {free_bytes / 2**30:.1f} GiB are free. Use "
        "parallel=fsdp over more devices, or a smaller model."
    )


@contextlib.contextmanager
def out_of_memory_told(recipe: Recipe) -> Iterator[None]:
    """Within it, an allocation that fails is an error that says what makes a step smaller.

    Raises:
        TrainingError: In its place.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).strip()
        on_cpu = "can't allocate memory" in text  # torch has no error of its own for it
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not on_cpu:
            raise
        micro_batch = recipe.global_batch_size // (
            recipe.accumulation_steps * distributed.world_size()
        )
        raise TrainingError(
            f"Memory ran out with {micro_batch} images in a micro-batch ({first_line(error)}). Set "
            "memory=auto, or grad_checkpointing=true, or a larger accumulation_steps (now "
            f"{recipe.accumulation_steps}); the run goes on from its newest checkpoint."
        ) from error


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _fixed_bytes(method: Method, recipe: Recipe) -> int:
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in method.parameters() if not p.requires_grad)
    frozen += sum(buffer.numel() for buffer in method.buffers())
    low = 2 if recipe.precision == "bf16" else 0  # autocast's copies
    return trained * (4 + 4 + 8 + low) + frozen * (4 + low)


def _kept_bytes(method: Method, recipe: Recipe, size: int, mode: FakeTensorMode) -> int:
    """Bytes that the forward pass of a batch saves, without the weights."""
    batch = _fake_batch(method, recipe, size, mode)
    weights = {tensor.untyped_storage()._cdata for tensor in method.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and tensor.device.type == CUDA:
            kept[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with mode, _autocast(recipe), patch.object(blocks, "attend", _fused_attention), hooks:
        terms = method(batch)
        found = sum(int(storage.nbytes()) for storage in kept.values())
        del terms
    return found


def _fake_batch(method: Method, recipe: Recipe, size: int, mode: FakeTensorMode) -> Batch:
    vocab_size, side = recipe.model.text.vocab_size, recipe.model.image_size
    length = min(NUM_TOKENS, recipe.model.text.context_length)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, vocab_size - 2, (size, length), generator=generator)
    tokens[:, 0], tokens[:, -1] = vocab_size - 2, vocab_size - 1
    drawn = method.draw(Draw(size, tokens, generator))
    with mode:
        views = [torch.empty(size, 3, side, side, device=CUDA)] * (1 + method.num_ssl_views)
        return Batch(
            images=views[0],
            tokens=torch.empty_like(tokens, device=CUDA),
            ssl_views=tuple(views[1:]),
            generator=generator,
            tokens_on_cpu=tokens,
            drawn=with_tensors(drawn, lambda tensor: torch.empty_like(tensor, device=CUDA)),
        )


@contextlib.contextmanager
def _autocast(recipe: Recipe) -> Iterator[None]:
    """bf16 on the fake GPU; `torch.autocast` refuses where there is no real one."""
    before = torch.is_autocast_enabled(CUDA), torch.get_autocast_dtype(CUDA)
    torch.set_autocast_enabled(CUDA, recipe.precision == "bf16")
    torch.set_autocast_dtype(CUDA, torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled(CUDA, before[0])
        torch.set_autocast_dtype(CUDA, before[1])
        torch.clear_autocast_cache()


class _Fused(torch.autograd.Function):
    """What a fused kernel keeps: query, key, value, its result and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        normalizer = torch.empty(query.shape[:-1], device=query.device)
        ctx.save_for_backward(query, key, value, result, normalizer)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pragma: no cover - only counted
        raise NotImplementedError


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return _Fused.apply(query, key, value)


GPU_BYTES = 76 * 2**30
"""Free on a card of 80 GB (79.6 GiB), less what CUDA, NCCL and the libraries take themselves."""

GPUS = (8, 16, 32, 64)


def memory_line(recipe: Recipe, memory: Memory) -> str:
    """The line of a recipe's header that says what it needs, and which GPUs it is sized for."""
    shared = recipe.parallel == "fsdp"
    needs = {
        gpus: memory.of(recipe.global_batch_size // gpus, shards=gpus if shared else 1)
        for gpus in GPUS
    }
    fits = next((gpus for gpus, needed in needs.items() if needed <= GPU_BYTES), None)
    sized = f"sized for {fits} x 80 GB" if fits else "larger than 64 x 80 GB"
    if fits != GPUS[0]:
        sized += "; on 8 set memory=auto"
    return (
        f"# Memory: {memory.per_image / 2**20:.0f} MiB an image and {memory.fixed / 2**30:.1f} GiB "
        f"beside them, counted; {needs[GPUS[0]] / 2**30:.0f} GiB each on {GPUS[0]} GPUs; {sized}."
    )
