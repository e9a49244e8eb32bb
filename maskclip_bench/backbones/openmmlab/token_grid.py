"""Tokens on a grid: tiled positions, and attention windows.

Shapes: B images, h x w patches, W windows of size x size patches, D embed_dim.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def tile_positions(positions: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Position embeddings [1, n, D] of the `native` grid, repeated until they cover `grid`."""
    rows, columns = (-(-size // own) for size, own in zip(grid, native, strict=True))
    maps = positions.unflatten(1, native).repeat(1, rows, columns, 1)  # [1, h', w', D]
    return maps[:, : grid[0], : grid[1]].flatten(1, 2)


def partition_windows(patches: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """[B, h * w, D] -> [B * W, size * size, D]; zeros fill the last windows."""
    (height, width), dim = grid, patches.shape[-1]
    maps = patches.unflatten(1, grid)  # [B, h, w, D]
    maps = F.pad(maps, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = maps.shape[1] // size, maps.shape[2] // size
    maps = maps.view(len(maps), rows, size, columns, size, dim).transpose(2, 3)
    return maps.reshape(-1, size * size, dim)


def join_windows(windows: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """The inverse of `partition_windows`: [B * W, size * size, D] -> [B, h * w, D]."""
    height, width = grid
    rows, columns = -(-height // size), -(-width // size)
    maps = windows.view(-1, rows, columns, size, size, windows.shape[-1]).transpose(2, 3)
    maps = maps.reshape(-1, rows * size, columns * size, windows.shape[-1])
    return maps[:, :height, :width].flatten(1, 2)
