"""One optimizer step: losses, gradients and the update, or none of it if they are not finite.

On a GPU the device decides whether a step is taken, so that the host never waits for it: AdamW's
kernel and `update` leave everything as it is where a flag on the device says so. On a CPU and with
FSDP2 the host decides, and waits once for the gradient. In both cases what a step computed on a GPU
is read while the next one runs.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskclip_bench import distributed
from maskclip_bench.data.batch import Batch, RawBatch
from maskclip_bench.pretrain.accumulation import accumulated_backward
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.methods.teacher import left_out_if
from maskclip_bench.pretrain.preparation import Preparation, Prepared
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.pretrain.run_length import RunLength
from maskclip_bench.runtime import derive_seed
from maskclip_bench.training import nonfinite
from maskclip_bench.training.optim import set_learning_rate
from maskclip_bench.training.parallel import ParallelStrategy
from maskclip_bench.training.readback import Readback, agreed
from maskclip_bench.training.schedule import learning_rate

logger = logging.getLogger(__name__)

SKIPPED, STOP, NORM = "skipped", "stop", "norm of "
"""Names among what is read; no loss term is called so."""


@dataclass
class StepResult:
    """What a step computed.

    Attributes:
        prepared: The step, and what it read.
        terms: Each loss term, and "loss", their sum, over the global batch.
        values: The learning rate, and what the method reports.
        stop: Whether any rank was asked to stop.
        bad: Which terms are not finite, as the subject of a sentence; empty if the step was taken.
    """

    prepared: Prepared
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


@dataclass
class _Pending:
    """A step whose numbers are on their way to the host."""

    prepared: Prepared
    lr: float
    names: list[str]  # of the loss terms
    readback: Readback


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
        decide_on_device: bool | None = None,
    ) -> None:
        """Prepare.

        Args:
            recipe: What is run.
            method: On the device.
            strategy: How its gradients become those of the global batch.
            optimizer: Of its parameters.
            length: Of the run.
            device: Where the method is.
            decide_on_device: Whether the device decides if a step is taken; by default on a GPU,
                where the optimizer's kernel can.
        """
        self._recipe = recipe
        self._method = method
        self._strategy = strategy
        self._optimizer: Any = optimizer
        self._length = length
        self._device = device
        self._rank = distributed.rank()
        self._names, self._parameters = zip(*method.named_parameters(), strict=True)
        self._buffers = list(method.buffers())
        self._buffers_before = [buffer.clone() for buffer in self._buffers]
        if decide_on_device is None:
            decide_on_device = device.type == "cuda" and strategy.decides_on_device
        self._decide_on_device = decide_on_device
        self._reads_later = decide_on_device or device.type == "cuda"
        self._pending: deque[_Pending] = deque()
        self.preparation = Preparation(recipe, method, device=device)
        self.nonfinite = NonFiniteCount()

    def __call__(self, prepared: Prepared, *, stop: bool) -> list[StepResult]:
        """Update the weights once, or not at all if a loss or the gradient is not finite.

        Args:
            prepared: What `preparation` made of the micro-batches of this rank.
            stop: Whether this rank was asked to stop; all ranks agree on it.

        Returns:
            What is known by now: this step, or on a GPU the one before (`finish` for the rest).
        """
        _copy(self._buffers, to=self._buffers_before)
        batches = self.preparation.open(prepared)
        lr = self._learning_rate(prepared.step)
        set_learning_rate(self._optimizer, lr)
        terms, bad, stop_flag = agreed(self._forward_backward(batches, prepared.step), stop=stop)
        norms = None
        if self._decide_on_device:
            norms = self._gradient_norms()
            values = self._update_unless_bad(bad, norms[1], prepared.step)
        else:
            values = self._update_if_good(bad, prepared.step)
        self._optimizer.zero_grad(set_to_none=True)
        readback = Readback({**terms, STOP: stop_flag, **values}, norms)
        self._pending.append(_Pending(prepared, lr, list(terms), readback))
        return self._finished(keep=1 if self._reads_later else 0)

    def finish(self) -> list[StepResult]:
        """The steps that are not told yet; waits for the device."""
        return self._finished(keep=0)

    def describe(self, raws: Sequence[RawBatch], *, step: int) -> str:
        """Ranges of inputs, embeddings and weights at a step that was skipped."""
        self._seed_global(0, step)
        with torch.compiler.set_stance("force_eager"):  # the outputs of all modules are looked at
            return nonfinite.describe(
                self._method,
                iter(self.preparation.open(self.preparation(raws, step=step))),
                encode=lambda batch: self._method.encode(batch)[0],
                autocast=self._autocast,
                also={"logit_scale": self._method.model.logit_scale},
            )

    # Whether a step is taken.

    def _update_if_good(self, bad: Tensor, step: int) -> dict[str, Any]:
        """The host decides: it waits for the gradient."""
        norm = self._gradient_norm()
        if bool(torch.maximum(bad, (~norm.isfinite()).to(bad.dtype))):  # the one wait of a step
            _copy(self._buffers_before, to=self._buffers)  # what the forward passes changed
            self.nonfinite.gradients = nonfinite.not_finite(
                (name, parameter.grad)
                for name, parameter in zip(self._names, self._parameters, strict=True)
                if parameter.grad is not None
            )
            return {SKIPPED: 1.0}
        self._clip(norm)
        self._optimizer.step()
        return {SKIPPED: 0.0, **self._update(step)}

    def _update_unless_bad(self, bad: Tensor, norms: Tensor, step: int) -> dict[str, Any]:
        """The device decides: nothing is read, and a bad step changes nothing."""
        norm = torch.linalg.vector_norm(norms)
        skipped = torch.maximum(bad, (~norm.isfinite()).float())
        self._clip(norm)
        self._optimizer.found_inf = skipped
        self._optimizer.step()
        with left_out_if(skipped):
            values = self._update(step)
        is_skipped = skipped.bool()
        with torch.no_grad():
            for buffer, before in zip(self._buffers, self._buffers_before, strict=True):
                torch.where(is_skipped, before, buffer, out=buffer)
        return {SKIPPED: skipped, **values}

    @torch.no_grad()
    def _update(self, step: int) -> dict[str, Any]:
        return dict(self._method.update(step=step + 1, total_steps=self._length.total_steps))

    def _finished(self, *, keep: int) -> list[StepResult]:
        """Results of all pending steps but the newest `keep`."""
        results = []
        while len(self._pending) > keep:
            results.append(self._result(self._pending.popleft()))
        return results

    def _result(self, pending: _Pending) -> StepResult:
        numbers = pending.readback.wait()
        terms = {name: numbers.pop(name) for name in pending.names}
        skipped, stop = bool(numbers.pop(SKIPPED)), bool(numbers.pop(STOP))
        norms = {name: numbers.pop(name) for name in list(numbers) if name.startswith(NORM)}
        step = pending.prepared.step
        result = StepResult(pending.prepared, terms, {"lr": pending.lr}, stop)
        if skipped:
            result.bad = not_finite(terms)
            self._count_skipped(step, result.bad, norms)
            return result
        result.values |= numbers
        if step >= self._length.warmup_steps:
            self._method.observe(
                result.values,
                step=step + 1,
                total_steps=self._length.total_steps,
                lr_share=pending.lr / self._recipe.optimizer.lr,
            )
        self.nonfinite.in_row = 0
        return result

    def _count_skipped(self, step: int, bad: str, norms: Mapping[str, float]) -> None:
        self.nonfinite.total += 1
        self.nonfinite.in_row += 1
        if self._decide_on_device:
            self.nonfinite.gradients = [
                name.removeprefix(NORM) for name, norm in norms.items() if not math.isfinite(norm)
            ]
        if self.nonfinite.in_row == 1:
            logger.warning("Step %d skipped: %s not finite.", step, bad)

    # Losses and gradients.

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

    def _forward_backward(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        if len(batches) == 1:
            self._seed_global(0, step)
            with self._autocast():
                terms = self._strategy.forward(batches[0])
            terms["loss"].backward()
        else:
            states = [batch.generator.get_state() for batch in batches]

            def reseed(number: int) -> None:
                batches[number].generator.set_state(states[number])
                self._seed_global(number, step)

            terms = accumulated_backward(
                self._method, batches, reseed=reseed, autocast=self._autocast
            )
        self._strategy.finish_gradients()
        return terms

    def _seed_global(self, number: int, step: int) -> None:
        """Seed torch's own generators: dropout and stochastic depth draw from them."""
        torch.manual_seed(derive_seed(self._recipe.seed, "dropout", step, self._rank, number))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._recipe.precision == "bf16"
        )

    def _gradient_norm(self) -> Tensor:
        """The norm of the whole gradient."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        # Of shards each rank has its own part.
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _gradient_norms(self) -> tuple[list[str], Tensor]:
        """What each parameter's gradient is called among what is read, and its norm, [P]."""
        pairs = zip(self._names, self._parameters, strict=True)
        gradients = {NORM + name: p.grad for name, p in pairs if p.grad is not None}
        return list(gradients), torch.stack(torch._foreach_norm(list(gradients.values())))

    def _clip(self, norm: Tensor) -> None:
        largest = self._recipe.optimizer.clip_grad_norm
        if largest is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, largest, norm)


def not_finite(terms: Mapping[str, float]) -> str:
    """The names of the terms that are not finite, as the subject of a sentence."""
    bad = [name for name in terms if name != "loss" and not math.isfinite(terms[name])]
    return f"{' and '.join(bad or ['the gradient'])} {'are' if len(bad) > 1 else 'is'}"


def _copy(values: list[Tensor], *, to: list[Tensor]) -> None:
    if values:
        with torch.no_grad():
            torch._foreach_copy_(to, values)
