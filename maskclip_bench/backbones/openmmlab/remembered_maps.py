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

from maskclip_bench.errors import StorageError
from maskclip_bench.storage import atomic_file

logger = logging.getLogger(__name__)

Maps = tuple[Tensor, ...]
"""L tensors [B, D, h, w]; of one image [D, h, w]."""


class RememberedMaps:
    """Calls an encoder only with images that are not known yet.

    Args:
        limit_bytes: Maps to keep; those of images that come later are not kept. As much again may
            come from the file.
        file: Of maps that another process has kept; it may be missing. `save` writes it.
    """

    def __init__(self, limit_bytes: int, file: Path | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._num_bytes = 0
        self._file = file
        self._handed_on = {} if file is None or not file.is_file() else _read(file)
        self._known: dict[str, Maps] = {}

    def __len__(self) -> int:
        """How many images are known."""
        return len(self._known) + len(self._handed_on)

    def __call__(self, images: Tensor, encode: Callable[[Tensor], Maps], *, encoder: str) -> Maps:
        """The maps of images [B, 3, H, W], as `encode` makes them.

        Args:
            images: On the CPU.
            encode: Without gradient, and each image by itself: the others of a batch do not matter.
            encoder: Name of exactly this encoder with its weights, another for every other.
        """
        keys = [f"{encoder}/{_digest(image)}" for image in images]
        there = {key: maps for key in keys if (maps := self._find(key)) is not None}
        new = {key: index for index, key in enumerate(keys) if key not in there}
        if not new:
            return _stacked([there[key] for key in keys])
        whole = len(new) == len(keys)
        maps = encode(images if whole else images[list(new.values())])
        found = {
            key: tuple(level[index].clone() for level in maps) for index, key in enumerate(new)
        }
        for key, levels in found.items():
            size = _size(levels)
            if self._num_bytes + size > self._limit_bytes:
                break
            self._known[key] = levels
            self._num_bytes += size
        if whole:
            return maps
        return _stacked([found[key] if key in found else there[key] for key in keys])

    def _find(self, key: str) -> Maps | None:
        return self._known.get(key) or self._handed_on.get(key)

    def save(self) -> None:
        """Write what is known into the file, the newest first, if there is a file and news.

        What is handed on only saves time: a disk that refuses is a warning.
        """
        if self._file is None or not self._known:
            return
        tensors: dict[str, Tensor] = {}
        num_bytes = 0
        for key, levels in {**self._known, **self._handed_on}.items():
            num_bytes += _size(levels)
            if num_bytes > self._limit_bytes:
                break
            for number, level in enumerate(levels):
                tensors[f"{key}/{number}"] = level.contiguous()
        try:
            with atomic_file(self._file, durable=False) as temporary:
                save_file(tensors, temporary)
        except (StorageError, SafetensorError) as error:
            logger.warning("The maps of the backbone are not handed on: %s", error)


def _read(file: Path) -> dict[str, Maps]:
    """What `save` wrote; nothing from a damaged file, which is removed."""
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be read (%s); its maps are made again.", file, error)
        with contextlib.suppress(OSError):
            file.unlink()
        return {}
    found: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, number = name.rpartition("/")
        found.setdefault(key, {})[int(number)] = tensor
    return {key: tuple(levels[n] for n in sorted(levels)) for key, levels in found.items()}


def _size(levels: Maps) -> int:
    return sum(level.numel() * level.element_size() for level in levels)


def _digest(image: Tensor) -> str:
    """What an image is known by; images of another shape or type differ."""
    digest = hashlib.sha256(f"{tuple(image.shape)} {image.dtype}".encode())
    digest.update(image.contiguous().numpy())
    return digest.hexdigest()


def _stacked(images: list[Maps]) -> Maps:
    return tuple(torch.stack(level) for level in zip(*images, strict=True))
