"""What travels from the loader to the method: raw uint8 batches, then batches ready for the model.

Legend: B samples on this rank, S image size in pixels, L tokens of the longest caption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass
class RawBatch:
    """One batch as the loader leaves it: decoded, cropped, tokenized; neither colour nor float yet.

    Attributes:
        images: Contrastive view, uint8 [B, 3, S, S] (channels-last in memory); on the device
            already where all images are held there, else on the CPU.
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
        drawn: What the method drew for it beforehand (`Method.draw`), on the device; None if it
            has to draw by itself.
    """

    images: Tensor
    tokens: Tensor
    ssl_views: tuple[Tensor, ...]
    generator: torch.Generator
    tokens_on_cpu: Tensor | None = None
    drawn: Mapping[str, Any] | None = None

    @property
    def captions(self) -> Tensor:
        """The tokens, on the CPU if possible: to look at them without waiting for the device."""
        return self.tokens if self.tokens_on_cpu is None else self.tokens_on_cpu


@dataclass(frozen=True)
class Draw:
    """What a method draws from for a batch, on the CPU.

    Attributes:
        num_images: B.
        captions: Int64 [B, L].
        generator: Of this step; everything that is drawn comes from it.
    """

    num_images: int
    captions: Tensor
    generator: torch.Generator


T = TypeVar("T")


def with_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """The same value, with `change` done to every tensor in its dicts, sequences and dataclasses.

    Args:
        value: Tensors among other things, which stay.
        change: Such as a copy to another device.
    """
    found: Any = value
    if isinstance(found, Tensor):
        found = change(found)
    elif is_dataclass(found) and not isinstance(found, type):
        parts = {field.name: getattr(found, field.name) for field in fields(found)}
        found = replace(found, **{name: with_tensors(part, change) for name, part in parts.items()})
    elif isinstance(found, dict):
        found = {name: with_tensors(part, change) for name, part in found.items()}
    elif isinstance(found, list | tuple):
        found = type(found)([with_tensors(part, change) for part in found])
    return found  # type: ignore[no-any-return]
