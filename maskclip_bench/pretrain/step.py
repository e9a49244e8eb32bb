"""One optimizer step: losses, gradients and the update, or none of it if they are not finite."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskclip_bench import distributed
from maskclip_bench.data.augment import DeviceAugment
from maskclip_bench.data.batch import Batch, RawBatch
from maskclip_bench.data.tokenizer import PAD_TOKEN_ID
from maskclip_bench.pretrain.accumulation import accumulated_backward
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.pretrain.run_length import RunLength
from maskclip_bench.runtime import derive_seed
from maskclip_bench.training import nonfinite
from maskclip_bench.training.optim import set_learning_rate
from maskclip_bench.training.parallel import ParallelStrategy
from maskclip_bench.training.readback import Readback
from maskclip_bench.training.schedule import learning_rate

logger = logging.getLogger(__name__)


@dataclass
class StepResult:
    """What a step computed.

    Attributes:
        terms: Each loss term, and "loss", their sum, over the global batch.
        values: The learning rate, and what the method reports.
        stop: Whether any rank was asked to stop.
        bad: Which terms are not finite, as the subject of a sentence; empty if the step was taken.
    """

    terms: dict[str, float]
    values: dict[str, float]
    stop: bool
    bad: str = ""


@dataclass
class NonFiniteCount:
    """Steps that were skipped because a loss or the gradient was not finite.

    Attributes:
        total: In the whole run.
        in_row: Up to the last step; 0 if that was taken.
        gradients: Parameters whose gradient was not finite at the last step that was skipped.
    """

    total: int = 0
    in_row: int = 0
    gradients: list[str] = field(default_factory=list)


class Stepper:
    """Does the steps of a run on this rank.

    Everything a step draws follows from (seed, step, rank, number of the micro-batch).
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        *,
        strategy: ParallelStrategy,
        optimizer: torch.optim.Optimizer,
        length: RunLength,
        device: torch.device,
    ) -> None:
        self._recipe = recipe
        self._method = method
        self._strategy = strategy
        self._optimizer = optimizer
        self._length = length
        self._device = device
        self._rank = distributed.rank()
        self._augment = DeviceAugment(recipe.data.augment)
        self._parameters = list(method.parameters())
        self._buffers = list(method.buffers())
        self._buffers_before = [buffer.clone() for buffer in self._buffers]
        self.nonfinite = NonFiniteCount()

    def __call__(self, raws: Sequence[RawBatch], *, step: int, stop: bool) -> StepResult:
        """Update the weights once, or not at all if a loss or the gradient is not finite.

        Args:
            raws: The micro-batches of this rank.
            step: Counted from 0.
            stop: Whether this rank was asked to stop; all ranks agree on it.
        """
        _copy(self._buffers, to=self._buffers_before)
        readback = self._forward_backward(raws, step=step, stop=stop)
        lr = self._learning_rate(step)
        set_learning_rate(self._optimizer, lr)
        finite = readback.wait() and self._clip_gradients()
        result = StepResult(readback.terms, {"lr": lr}, readback.stop)
        if finite:
            self._optimizer.step()
            total_steps = self._length.total_steps
            result.values |= self._method.after_step(step=step + 1, total_steps=total_steps)
            self.nonfinite.in_row = 0
        else:
            result.bad = readback.not_finite()
            self._skip(step, result.bad)
        self._optimizer.zero_grad(set_to_none=True)
        return result

    def describe(self, raws: Sequence[RawBatch], *, step: int) -> str:
        """Ranges of inputs, embeddings and weights at a step that was skipped."""
        batches = (self._prepare(raw, number, step) for number, raw in enumerate(same_length(raws)))
        return nonfinite.describe(
            self._method,
            batches,
            encode=lambda batch: self._method.encode(batch)[0],
            autocast=self._autocast,
            also={"logit_scale": self._method.model.logit_scale},
        )

    def _skip(self, step: int, bad: str) -> None:
        """Undo what the forward passes changed, and count."""
        _copy(self._buffers_before, to=self._buffers)
        self.nonfinite.total += 1
        self.nonfinite.in_row += 1
        self.nonfinite.gradients = nonfinite.not_finite(
            (name, parameter.grad)
            for name, parameter in self._method.named_parameters()
            if parameter.grad is not None
        )
        if self.nonfinite.in_row == 1:
            logger.warning("Step %d skipped: %s not finite.", step, bad)

    def _learning_rate(self, step: int) -> float:
        optimizer = self._recipe.optimizer
        return learning_rate(
            step,
            total_steps=self._length.total_steps,
            warmup_steps=self._length.warmup_steps,
            lr=optimizer.lr,
            start_lr=optimizer.start_lr,
            min_lr=min(optimizer.min_lr, optimizer.lr),
        )

    def _forward_backward(self, raws: Sequence[RawBatch], *, step: int, stop: bool) -> Readback:
        batches = [self._prepare(raw, number, step) for number, raw in enumerate(same_length(raws))]
        if len(batches) == 1:
            with self._autocast():
                terms = self._strategy.forward(batches[0])
            readback = Readback(terms, stop=stop)  # copied to the CPU during the backward pass
            terms["loss"].backward()
        else:
            states = [batch.generator.get_state() for batch in batches]

            def reseed(number: int) -> None:
                batches[number].generator.set_state(states[number])
                self._seed_global(number, step)

            terms = accumulated_backward(
                self._method, batches, reseed=reseed, autocast=self._autocast
            )
            readback = Readback(terms, stop=stop)
        self._strategy.finish_gradients()
        return readback

    def _prepare(self, raw: RawBatch, number: int, step: int) -> Batch:
        """Augment a micro-batch on the device, and seed all that a step draws."""
        seed = derive_seed(self._recipe.seed, "step", step, self._rank, number)
        generator = torch.Generator().manual_seed(seed)
        batch = self._augment(raw, device=self._device, generator=generator)
        self._seed_global(number, step)
        return batch

    def _seed_global(self, number: int, step: int) -> None:
        """Seed torch's own generators: dropout and stochastic depth draw from them."""
        torch.manual_seed(derive_seed(self._recipe.seed, "dropout", step, self._rank, number))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._recipe.precision == "bf16"
        )

    def _clip_gradients(self) -> bool:
        """Clip if the recipe says so; False if the gradient is not finite, on any rank."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        if hasattr(norm, "full_tensor"):  # of shards: each rank has its own part
            norm = norm.full_tensor()
        if not bool(norm.isfinite()):
            return False
        largest = self._recipe.optimizer.clip_grad_norm
        if largest is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, largest, norm)
        return True


def same_length(raws: Sequence[RawBatch]) -> list[RawBatch]:
    """Pad the captions of all micro-batches to one length."""
    length = max(raw.tokens.shape[1] for raw in raws)
    return [
        RawBatch(
            images=raw.images,
            tokens=torch.nn.functional.pad(
                raw.tokens, (0, length - raw.tokens.shape[1]), value=PAD_TOKEN_ID
            ),
            ssl_images=raw.ssl_images,
            keys=raw.keys,
        )
        for raw in raws
    ]


def _copy(values: list[Tensor], *, to: list[Tensor]) -> None:
    if values:
        with torch.no_grad():
            torch._foreach_copy_(to, values)
