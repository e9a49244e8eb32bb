"""Feature maps of a frozen backbone, kept for images that come again.

A short training of a head passes each image several times, flipped or not: its maps are the same
each time. An image is recognized by its pixels, as they come to the backbone.

B images, L levels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

Maps = tuple[Tensor, ...]
"""L tensors [B, D, h, w]; of one image [D, h, w]."""


class RememberedMaps:
    """Calls an encoder only with images that are not known yet.

    Args:
        limit_bytes: Maps to keep; those of images that come later are not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._num_bytes = 0
        self._known: dict[bytes, Maps] = {}

    def __len__(self) -> int:
        """How many images are known."""
        return len(self._known)

    def __call__(self, images: Tensor, encode: Callable[[Tensor], Maps]) -> Maps:
        """The maps of images [B, 3, H, W], as `encode` makes them.

        Args:
            images: On the CPU.
            encode: Without gradient, and each image by itself: the others of a batch do not matter.
        """
        keys = [_digest(image) for image in images]
        new = {key: index for index, key in enumerate(keys) if key not in self._known}
        if not new:
            return _stacked([self._known[key] for key in keys])
        whole = len(new) == len(keys)
        maps = encode(images if whole else images[list(new.values())])
        found = {
            key: tuple(level[index].clone() for level in maps) for index, key in enumerate(new)
        }
        for key, levels in found.items():
            size = sum(level.numel() * level.element_size() for level in levels)
            if self._num_bytes + size > self._limit_bytes:
                break
            self._known[key] = levels
            self._num_bytes += size
        if whole:
            return maps
        return _stacked([found[key] if key in found else self._known[key] for key in keys])


def _digest(image: Tensor) -> bytes:
    """What an image is known by; images of another shape or type differ."""
    digest = hashlib.sha256(f"{tuple(image.shape)} {image.dtype}".encode())
    digest.update(image.contiguous().numpy())
    return digest.digest()


def _stacked(images: list[Maps]) -> Maps:
    return tuple(torch.stack(level) for level in zip(*images, strict=True))
