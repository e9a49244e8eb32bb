"""Feature maps of a frozen backbone, kept for images that come again.

A short training of a head passes each image several times, flipped or not: its maps are the same
each time. Another head on the same backbone sees the same images: a file takes the maps from one
job to the next. An image is recognized by its pixels, as they come to the backbone.

B images, L levels.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskclip_bench.storage import atomic_file

logger = logging.getLogger(__name__)

Maps = tuple[Tensor, ...]
"""L tensors [B, D, h, w]; of one image [D, h, w]."""


class RememberedMaps:
    """Calls an encoder only with images that are not known yet.

    Args:
        limit_bytes: Maps to keep; those of images that come later are not kept.
        file: Of maps that another process has kept; it may be missing. `save` writes it.
    """

    def __init__(self, limit_bytes: int, file: Path | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._num_bytes = 0
        self._known: dict[str, Maps] = {}
        self._file = file
        if file is not None and file.is_file():
            self._load(file)
        self._num_saved = len(self._known)

    def __len__(self) -> int:
        """How many images are known."""
        return len(self._known)

    def __call__(self, images: Tensor, encode: Callable[[Tensor], Maps], *, encoder: str) -> Maps:
        """The maps of images [B, 3, H, W], as `encode` makes them.

        Args:
            images: On the CPU.
            encode: Without gradient, and each image by itself: the others of a batch do not matter.
            encoder: Name of exactly this encoder with its weights, another for every other.
        """
        keys = [f"{encoder}/{_digest(image)}" for image in images]
        new = {key: index for index, key in enumerate(keys) if key not in self._known}
        if not new:
            return _stacked([self._known[key] for key in keys])
        whole = len(new) == len(keys)
        maps = encode(images if whole else images[list(new.values())])
        found = {
            key: tuple(level[index].clone() for level in maps) for index, key in enumerate(new)
        }
        for key, levels in found.items():
            if not self._keep(key, levels):
                break
        if whole:
            return maps
        return _stacked([found[key] if key in found else self._known[key] for key in keys])

    def save(self) -> None:
        """Write all that is known into the file, if there is one and something is new.

        Raises:
            StorageError: The disk refused.
        """
        if self._file is None or len(self._known) == self._num_saved:
            return
        tensors = {
            f"{key}/{number}": level.contiguous()
            for key, levels in self._known.items()
            for number, level in enumerate(levels)
        }
        with atomic_file(self._file, durable=False) as temporary:
            save_file(tensors, temporary)
        self._num_saved = len(self._known)

    def _load(self, file: Path) -> None:
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            logger.warning("%s cannot be read (%s); its maps are made again.", file, error)
            with contextlib.suppress(OSError):
                file.unlink()
            return
        levels: dict[str, dict[int, Tensor]] = {}
        for name, tensor in tensors.items():
            key, _, number = name.rpartition("/")
            levels.setdefault(key, {})[int(number)] = tensor
        for key, found in levels.items():
            if not self._keep(key, tuple(found[number] for number in sorted(found))):
                break

    def _keep(self, key: str, levels: Maps) -> bool:
        """Keep an image's maps; False if there is no room."""
        size = sum(level.numel() * level.element_size() for level in levels)
        if self._num_bytes + size > self._limit_bytes:
            return False
        self._known[key] = levels
        self._num_bytes += size
        return True


def _digest(image: Tensor) -> str:
    """What an image is known by; images of another shape or type differ."""
    digest = hashlib.sha256(f"{tuple(image.shape)} {image.dtype}".encode())
    digest.update(image.contiguous().numpy())
    return digest.hexdigest()


def _stacked(images: list[Maps]) -> Maps:
    return tuple(torch.stack(level) for level in zip(*images, strict=True))
