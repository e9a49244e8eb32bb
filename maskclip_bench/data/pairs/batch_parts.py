"""What the loader asks a worker for, what it gets, and how parts become a batch.

B samples of a batch, b of a part, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip_bench.data.batch import RawBatch
from maskclip_bench.data.pairs.pair_sources import BadSampleError
from maskclip_bench.data.tokenizer import PAD_TOKEN_ID

Indices = npt.NDArray[np.int64]

Bad = tuple[str, str, str, str]
"""(shard, key or number, reason, detail) of a sample that was replaced."""

T = TypeVar("T")


@dataclass(frozen=True)
class BatchRequest:
    """What a worker needs to make one part of a batch.

    Attributes:
        epoch: Counted from 0.
        position: Position of the first sample in the order of the epoch.
        indices: Samples of the part, [B].
        substitutes: Samples that stand in for broken ones, in this order.
    """

    epoch: int
    position: int
    indices: Indices
    substitutes: Indices


@dataclass(frozen=True)
class PairDraws:
    """What was drawn for a batch of pairs whose images are held in memory.

    Attributes:
        indices: The samples, [B].
        captions: For each, the number of its caption among all captions, [B].
        crops: For each view and sample left, top, width and height in pixels, [V, B, 4].
    """

    indices: Indices
    captions: Indices
    crops: Indices

    def pin_memory(self) -> PairDraws:
        """The same: a few numbers."""
        return self


@dataclass
class LoadedBatch:
    """A batch with what went wrong while it was made.

    Attributes:
        batch: The batch, or what was drawn for it; None if there were not enough good samples.
        bad: The samples that were replaced.
    """

    batch: RawBatch | PairDraws | None
    bad: list[Bad] = field(default_factory=list)

    def pin_memory(self) -> LoadedBatch:
        """The same in page-locked memory."""
        return LoadedBatch(self.batch.pin_memory() if self.batch else None, self.bad)


def filled(
    request: BatchRequest, load: Callable[[int, int], T], shard: Callable[[int], str]
) -> tuple[list[T] | None, list[Bad]]:
    """Load the samples of a part, with substitutes for those that are broken.

    Args:
        request: Which samples.
        load: (index of a sample, number of its slot) -> the sample; raises `BadSampleError`.
        shard: Index of a sample -> name of its shard.

    Returns:
        The samples, None if there were not enough good ones, and those that were replaced.
    """
    found: list[T] = []
    bad: list[Bad] = []
    taken = set(request.indices.tolist())
    substitutes = iter(request.substitutes.tolist())
    for slot, wanted in enumerate(request.indices.tolist()):
        index: int | None = wanted
        while index is not None:
            try:
                found.append(load(index, slot))
            except BadSampleError as error:
                if index == wanted:  # a broken substitute is counted where its turn is
                    bad.append((shard(index), str(index), error.reason, error.detail))
                index = next((spare for spare in substitutes if spare not in taken), None)
                if index is not None:
                    taken.add(index)
            else:
                break
        if index is None:
            return None, bad
    return found, bad


def join(parts: list[LoadedBatch]) -> LoadedBatch:
    """One batch of several parts, in page-locked memory if they are."""
    bad = [sample for part in parts for sample in part.bad]
    if any(part.batch is None for part in parts):
        return LoadedBatch(None, bad)
    if len(parts) == 1:
        return parts[0]
    draws = [part.batch for part in parts if isinstance(part.batch, PairDraws)]
    if draws:
        return LoadedBatch(_joined_draws(draws), bad)
    batches = [part.batch for part in parts if isinstance(part.batch, RawBatch)]
    return LoadedBatch(_joined_batches(batches), bad)


def _joined_draws(parts: list[PairDraws]) -> PairDraws:
    return PairDraws(
        indices=np.concatenate([part.indices for part in parts]),
        captions=np.concatenate([part.captions for part in parts]),
        crops=np.concatenate([part.crops for part in parts], axis=1),
    )


def _joined_batches(batches: list[RawBatch]) -> RawBatch:
    longest = max(batch.tokens.shape[1] for batch in batches)
    tokens = [
        F.pad(batch.tokens, (0, longest - batch.tokens.shape[1]), value=PAD_TOKEN_ID)
        for batch in batches
    ]
    return RawBatch(
        images=_joined_images([batch.images for batch in batches]),
        tokens=torch.cat(tokens),
        ssl_images=tuple(
            _joined_images(list(views))
            for views in zip(*(batch.ssl_images for batch in batches), strict=True)
        ),
        keys=[key for batch in batches for key in batch.keys],
    )


def _joined_images(parts: list[Tensor]) -> Tensor:
    """uint8 [b, 3, S, S] each -> [B, 3, S, S], channels last in memory as they are."""
    _, channels, height, width = parts[0].shape
    shape = (sum(len(part) for part in parts), height, width, channels)
    whole = torch.empty(shape, dtype=parts[0].dtype, pin_memory=parts[0].is_pinned())
    return torch.cat(parts, out=whole.permute(0, 3, 1, 2))
