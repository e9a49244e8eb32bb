"""Batches made ready for a step, one step ahead: drawn on the CPU, copied while the device works.

Everything that a step draws for its batches (augmentation, masks, words) and the layout of its
captions follow from (seed, step, rank, number of the micro-batch) and are made on the CPU. On a GPU
they are pinned and copied on a stream of their own, while the step before still computes; on a CPU
each step is prepared when its turn is. The results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskclip_bench import distributed
from maskclip_bench.data.augment import AugmentDraws, DeviceAugment
from maskclip_bench.data.batch import Batch, Draw, RawBatch, with_tensors
from maskclip_bench.data.tokenizer import PAD_TOKEN_ID
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.runtime import derive_seed


@dataclass(frozen=True)
class Part:
    """One micro-batch with all that was drawn for it, on the device.

    Attributes:
        raw: Images and captions as the loader made them.
        draws: Of the augmentation.
        drawn: Of the method.
        generator: Where the draws ended.
        captions: The captions on the CPU.
    """

    raw: RawBatch
    draws: AugmentDraws
    drawn: dict[str, Any]
    generator: torch.Generator
    captions: Tensor


@dataclass(frozen=True)
class Prepared:
    """The micro-batches of a step.

    Attributes:
        step: Counted from 0.
        raws: As the loader made them, for messages.
        parts: Made ready.
        num_replaced: Samples replaced in the epoch, this step's included.
        copied: Set when the copies are done; None if nothing was copied.
    """

    step: int
    raws: Sequence[RawBatch]
    parts: list[Part]
    num_replaced: int = 0
    copied: torch.cuda.Event | None = None


class Preparation:
    """Draws and copies for the steps of a run on this rank.

    Args:
        recipe: Seed and augmentation.
        method: Its `draw`.
        device: Where it is.
    """

    def __init__(self, recipe: Recipe, method: Method, *, device: torch.device) -> None:
        self._seed = recipe.seed
        self._method = method
        self._device = device
        self._rank = distributed.rank()
        self._augment = DeviceAugment(recipe.data.augment)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, raws: Sequence[RawBatch], *, step: int, num_replaced: int = 0) -> Prepared:
        """Draw for a step, and begin to copy."""
        parts = [self._drawn(raw, number, step) for number, raw in enumerate(same_length(raws))]
        if self._stream is None:
            moved = [self._moved(part, lambda tensor: tensor.to(self._device)) for part in parts]
            return Prepared(step, raws, moved, num_replaced)
        with torch.cuda.stream(self._stream):
            moved = [self._moved(part, self._copied) for part in parts]
            event = torch.cuda.Event()
            event.record(self._stream)
        return Prepared(step, raws, moved, num_replaced, event)

    def open(self, prepared: Prepared) -> list[Batch]:
        """Augment the copied micro-batches on the device -> batches for the method."""
        if prepared.copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(prepared.copied)
            for part in prepared.parts:  # their memory belongs to the other stream

                def used_here(tensor: Tensor) -> Tensor:
                    if tensor.is_cuda:
                        tensor.record_stream(current)
                    return tensor

                with_tensors((part.raw, part.draws, part.drawn), used_here)
        return [self._opened(part) for part in prepared.parts]

    def ahead(
        self,
        batches: Iterator[list[RawBatch]],
        *,
        first_step: int,
        last_step: int,
        num_replaced: Callable[[], int],
    ) -> Generator[Prepared, None, None]:
        """Prepared steps; on a GPU each is prepared before the one before it is handed on.

        Args:
            batches: The micro-batches of each step, without end.
            first_step: Of `batches`.
            last_step: Nothing is read after it.
            num_replaced: Samples replaced so far in the epoch of what was read last.
        """
        waiting: Prepared | None = None
        for step in range(first_step, last_step + 1):
            prepared = self(next(batches), step=step, num_replaced=num_replaced())
            if self._stream is None:
                yield prepared
                continue
            if waiting is not None:
                yield waiting
            waiting = prepared
        if waiting is not None:
            yield waiting

    def _drawn(self, raw: RawBatch, number: int, step: int) -> Part:
        """Everything drawn for a micro-batch, on the CPU: augmentation first, then the method."""
        seed = derive_seed(self._seed, "step", step, self._rank, number)
        generator = torch.Generator().manual_seed(seed)
        draws = self._augment.draw(raw, generator)
        drawn = self._method.draw(Draw(len(raw.keys), raw.tokens, generator))
        return Part(raw, draws, drawn, generator, raw.tokens)

    @staticmethod
    def _moved(part: Part, move: Callable[[Tensor], Tensor]) -> Part:
        raw, draws, drawn = with_tensors((part.raw, part.draws, part.drawn), move)
        return Part(raw, draws, drawn, part.generator, part.captions)

    def _copied(self, tensor: Tensor) -> Tensor:
        if tensor.is_cuda:  # held there
            return tensor
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(self._device, non_blocking=True)

    def _opened(self, part: Part) -> Batch:
        batch = self._augment.apply(part.raw, part.draws, generator=part.generator)
        batch.tokens_on_cpu, batch.drawn = part.captions, part.drawn
        return batch


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
