"""Which patches are hidden. B images, N patches, V visible, M hidden; True = masked (hidden)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

MaskKind = Literal["random", "block"]

RECTANGLES = 8
"""Rectangles that are drawn at a time; most images need no more."""


@dataclass(frozen=True)
class PatchMask:
    """The hidden and the visible patches of a batch, every image with the same numbers of them.

    Attributes:
        hidden: Bool [B, N], True = masked.
        visible_ids: Int64 [B, V], ascending.
        hidden_ids: Int64 [B, M], ascending.
    """

    hidden: Tensor
    visible_ids: Tensor
    hidden_ids: Tensor

    @classmethod
    def from_hidden(cls, hidden: Tensor) -> PatchMask:
        """Index a bool mask [B, N] with the same number of True in every row."""
        order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
        num_visible = hidden.shape[1] - int(hidden[0].sum())
        return cls(hidden, order[:, :num_visible], order[:, num_visible:])

    def to(self, device: torch.device) -> PatchMask:
        """The same on another device."""
        if self.hidden.device == device:
            return self
        return PatchMask(
            self.hidden.to(device, non_blocking=True),
            self.visible_ids.to(device, non_blocking=True),
            self.hidden_ids.to(device, non_blocking=True),
        )


def num_hidden(num_patches: int, ratio: float, *, rounding: Callable[[float], int] = round) -> int:
    """Patches that a mask ratio hides: rounded, at least one hidden and one visible."""
    return min(max(rounding(num_patches * ratio), 1), num_patches - 1)


def draw_mask(
    kind: MaskKind,
    num_images: int,
    grid_size: tuple[int, int],
    ratio: float,
    generator: torch.Generator,
) -> PatchMask:
    """A mask of either kind, on the CPU."""
    if kind == "block":
        return block_mask(num_images, grid_size, ratio, generator)
    return random_mask(num_images, math.prod(grid_size), ratio, generator)


def random_mask(
    num_images: int,
    num_patches: int,
    ratio: float,
    generator: torch.Generator,
    *,
    rounding: Callable[[float], int] = round,
) -> PatchMask:
    """Hide each patch with the same chance (MAE; the paper's choice, ratio 0.75)."""
    noise = torch.rand(num_images, num_patches, generator=generator)
    hidden = torch.zeros(num_images, num_patches, dtype=torch.bool)
    chosen = noise.argsort(dim=1)[:, : num_hidden(num_patches, ratio, rounding=rounding)]
    return PatchMask.from_hidden(hidden.scatter_(1, chosen, True))


def coarse_mask(
    num_images: int,
    grid_size: tuple[int, int],
    ratio: float,
    cell: int,
    generator: torch.Generator,
) -> PatchMask:
    """Hide square cells of `cell` x `cell` patches, each with the same chance (SimMIM).

    The grid is divided into whole cells, which `cell` must allow. Their number is rounded up, as in
    SimMIM's code.
    """
    height, width = grid_size[0] // cell, grid_size[1] // cell
    mask = random_mask(num_images, height * width, ratio, generator, rounding=math.ceil)
    coarse = mask.hidden
    fine = coarse.view(num_images, height, 1, width, 1).expand(-1, -1, cell, -1, cell)
    return PatchMask.from_hidden(fine.reshape(num_images, -1))


def block_mask(
    num_images: int,
    grid_size: tuple[int, int],
    ratio: float,
    generator: torch.Generator,
    *,
    min_patches: int = 4,
    min_aspect: float = 0.3,
) -> PatchMask:
    """Hide rectangles until the ratio is reached (BEiT's scheme and its defaults).

    Args:
        num_images: B.
        grid_size: Rows and columns of patches.
        ratio: Share hidden.
        generator: Of all draws.
        min_patches: Smallest rectangle.
        min_aspect: Narrowest rectangle, as the ratio of its sides.
    """
    height, width = grid_size
    wanted = num_hidden(height * width, ratio)
    log_aspect = math.log(min_aspect)
    # Grids are whole numbers, patch n their bit n: thousands of rectangles take milliseconds.
    columns_of_bits = [sum(1 << (row * width) for row in range(rows)) for rows in range(height + 1)]
    grids = []
    for first_draws in torch.rand(num_images, RECTANGLES, 4, generator=generator).tolist():
        hidden, missing = 0, wanted
        for draw in itertools.chain(first_draws, _rectangles(generator)):
            area = min_patches + draw[0] * max(0, missing - min_patches)
            aspect = math.exp(log_aspect * (1 - 2 * draw[1]))
            rows = min(height, max(1, round(math.sqrt(area * aspect))))
            columns = min(width, max(1, round(math.sqrt(area / aspect))))
            top = int(draw[2] * (height - rows + 1))
            left = int(draw[3] * (width - columns + 1))
            rectangle = ((1 << columns) - 1) * columns_of_bits[rows] << (top * width + left)
            fresh = rectangle & ~hidden
            while fresh.bit_count() > missing:  # more than is wanted: without its last patches
                fresh ^= 1 << (fresh.bit_length() - 1)
            hidden |= fresh
            missing -= fresh.bit_count()
            if not missing:
                break
        grids.append(hidden.to_bytes(-(-height * width // 8), "little"))
    packed = np.frombuffer(b"".join(grids), dtype=np.uint8).reshape(num_images, -1)
    bits = np.unpackbits(packed, axis=1, count=height * width, bitorder="little")  # [B, N]
    return PatchMask.from_hidden(torch.from_numpy(bits).bool())


def _rectangles(generator: torch.Generator) -> Iterator[list[float]]:
    """Draws for further rectangles, without end."""
    while True:
        yield from torch.rand(RECTANGLES, 4, generator=generator).tolist()


def choose_words(captions: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Words to mask, bool [T, L]: never the start, the end or padding.

    Args:
        captions: Int64 [T, L]; starts with the start token, the end token is the largest id.
        ratio: Share of the words of each caption, rounded; at least one, if it has any.
        generator: CPU generator.
    """
    end = captions.argmax(dim=1, keepdim=True).cpu()  # [T, 1]
    position = torch.arange(captions.shape[1])
    is_word = (position > 0) & (position < end)  # [T, L]
    noise = torch.rand(captions.shape, generator=generator).masked_fill_(~is_word, 2.0)
    count = ((end - 1) * ratio).round().clamp_(min=1)
    rank = noise.argsort(dim=1).argsort(dim=1)
    return ((rank < count) & is_word).to(captions.device, non_blocking=True)
