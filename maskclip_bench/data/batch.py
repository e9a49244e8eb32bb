"""What travels from the loader to the method: raw uint8 batches, then batches ready for the model.

Legend: B samples on this rank, S image size in pixels, L tokens of the longest caption.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RawBatch:
    """One batch as the CPU leaves it: decoded, cropped, tokenized; neither colour nor float yet.

    Attributes:
        images: Contrastive view, uint8 [B, 3, S, S] (channels-last in memory).
        tokens: Captions, int64 [B, L], trimmed to the longest caption, padded with 0 on the right.
        ssl_images: Further views of the same images, each uint8 [B, 3, S, S]; often none.
        keys: Names of the B samples.
    """

    images: Tensor
    tokens: Tensor
    ssl_images: tuple[Tensor, ...]
    keys: list[str]

    def pin_memory(self) -> RawBatch:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return RawBatch(
            images=self.images.pin_memory(),
            tokens=self.tokens.pin_memory(),
            ssl_images=tuple(view.pin_memory() for view in self.ssl_images),
            keys=self.keys,
        )


@dataclass
class Batch:
    """One batch on the device, ready for a method.

    Attributes:
        images: Contrastive view, float [B, 3, S, S], normalized.
        tokens: Captions, int64 [B, L].
        ssl_views: Augmented views for self-supervised terms, each float [B, 3, S, S], normalized.
        generator: CPU generator of this step; masks and every other draw come from it.
        tokens_on_cpu: The captions as the loader made them, if they are still there.
    """

    images: Tensor
    tokens: Tensor
    ssl_views: tuple[Tensor, ...]
    generator: torch.Generator
    tokens_on_cpu: Tensor | None = None

    @property
    def captions(self) -> Tensor:
        """The tokens, on the CPU if possible: to look at them without waiting for the device."""
        return self.tokens if self.tokens_on_cpu is None else self.tokens_on_cpu
