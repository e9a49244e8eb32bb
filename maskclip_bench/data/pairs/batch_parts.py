"""What the loader asks a worker for, what it gets, and how parts become a batch.

B samples of a batch, b of a part, S image size in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip_bench.data.batch import RawBatch
from maskclip_bench.data.tokenizer import PAD_TOKEN_ID

Indices = npt.NDArray[np.int64]


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


@dataclass
class LoadedBatch:
    """A batch with what went wrong while it was made.

    Attributes:
        batch: The batch, None if there were not enough good samples.
        bad: (shard, key or number, reason, detail) of each sample that was replaced.
    """

    batch: RawBatch | None
    bad: list[tuple[str, str, str, str]] = field(default_factory=list)

    def pin_memory(self) -> LoadedBatch:
        """The same in page-locked memory."""
        return LoadedBatch(self.batch.pin_memory() if self.batch else None, self.bad)


def join(parts: list[LoadedBatch]) -> LoadedBatch:
    """One batch of several parts, in page-locked memory if they are."""
    bad = [sample for part in parts for sample in part.bad]
    batches = [part.batch for part in parts if part.batch is not None]
    if len(batches) < len(parts):
        return LoadedBatch(None, bad)
    if len(parts) == 1:
        return parts[0]
    longest = max(batch.tokens.shape[1] for batch in batches)
    tokens = [
        F.pad(batch.tokens, (0, longest - batch.tokens.shape[1]), value=PAD_TOKEN_ID)
        for batch in batches
    ]
    whole = RawBatch(
        images=_joined_images([batch.images for batch in batches]),
        tokens=torch.cat(tokens),
        ssl_images=tuple(
            _joined_images(list(views))
            for views in zip(*(batch.ssl_images for batch in batches), strict=True)
        ),
        keys=[key for batch in batches for key in batch.keys],
    )
    return LoadedBatch(whole, bad)


def _joined_images(parts: list[Tensor]) -> Tensor:
    """uint8 [b, 3, S, S] each -> [B, 3, S, S], channels last in memory as they are."""
    _, channels, height, width = parts[0].shape
    shape = (sum(len(part) for part in parts), height, width, channels)
    whole = torch.empty(shape, dtype=parts[0].dtype, pin_memory=parts[0].is_pinned())
    return torch.cat(parts, out=whole.permute(0, 3, 1, 2))
