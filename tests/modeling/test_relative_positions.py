"""Decomposed relative positions: the formula, pair by pair; other grids; prefix tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskclip_bench.modeling.relative_positions import RelativePositions


def filled(grid: tuple[int, int], head_dim: int) -> RelativePositions:
    positions = RelativePositions(grid, head_dim)
    torch.manual_seed(0)
    for table in positions.parameters():
        torch.nn.init.normal_(table)
    return positions


@pytest.mark.parametrize("num_prefix", [0, 1, 3])
def test_bias__of_every_pair(num_prefix: int) -> None:
    rows, columns, width = 2, 3, 5
    positions = filled((rows, columns), width)
    query = torch.randn(2, 4, num_prefix + rows * columns, width)
    bias = positions(query, (rows, columns))
    expected = torch.zeros(2, 4, query.shape[2], query.shape[2])
    for i in range(rows):
        for j in range(columns):
            for m in range(rows):
                for n in range(columns):
                    place = num_prefix + i * columns + j
                    q = query[:, :, place]
                    added = q @ positions.rows[i - m + rows - 1]
                    added = added + q @ positions.columns[j - n + columns - 1]
                    expected[:, :, place, num_prefix + m * columns + n] = added
    torch.testing.assert_close(bias, expected)


def test_bias__begins_at_zero_and_learns() -> None:
    positions = RelativePositions((2, 2), 4)
    query = torch.randn(1, 1, 5, 4)
    bias = positions(query, (2, 2))
    assert not bias.any()
    (bias * torch.randn_like(bias)).sum().backward()
    assert all(table.grad is not None and table.grad.any() for table in positions.parameters())


def test_bias__of_another_grid_is_resampled_linearly() -> None:
    positions = filled((4, 4), 3)
    query = torch.randn(1, 2, 6, 3)
    tables = [
        F.interpolate(table.detach().T[None], size=2 * size - 1, mode="linear")[0].T
        for table, size in ((positions.rows, 2), (positions.columns, 3))
    ]
    other = RelativePositions((2, 3), 3)
    other.rows.data, other.columns.data = tables
    torch.testing.assert_close(positions(query, (2, 3)), other(query, (2, 3)))
