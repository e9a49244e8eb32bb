from __future__ import annotations

import torch

from maskclip_bench.backbones.openmmlab.token_grid import (
    join_windows,
    partition_windows,
    tile_positions,
)


def test_windows__round_trip_with_padding() -> None:
    patches = torch.randn(2, 5 * 7, 3)
    windows = partition_windows(patches, (5, 7), 3)
    assert windows.shape == (2 * 2 * 3, 9, 3)
    assert torch.equal(join_windows(windows, (5, 7), 3), patches)
    assert torch.equal(windows[0], patches.view(2, 5, 7, 3)[0, :3, :3].reshape(9, 3))


def test_tile_positions__repeats_the_grid() -> None:
    positions = torch.arange(6.0).view(1, 6, 1)  # 2 x 3
    tiled = tile_positions(positions, (2, 3), (3, 5)).view(3, 5)
    assert tiled.tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4], [0, 1, 2, 0, 1]]
