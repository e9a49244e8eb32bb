"""Decomposed relative positions of an attention, as in ViTDet.

Li et al., 2022 (arXiv 2203.16527, Appendix; from MViTv2, arXiv 2112.01526):
github.com/facebookresearch/detectron2, `modeling/backbone/utils.py`. To the score of query q at
(i, j) and key k at (m, n) is added q . rows[i - m] + q . columns[j - n], with the query before its
scaling. The tables begin at zero, so a pretrained ViT begins with the features it has.

B images or windows, N patches on a grid of h x w, P prefix tokens, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RelativePositions(nn.Module):
    """Tables for one grid; another grid takes them linearly resampled, as in ViTDet.

    Args:
        grid: (h, w) that the tables are made for.
        head_dim: d.
    """

    def __init__(self, grid: tuple[int, int], head_dim: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(2 * grid[0] - 1, head_dim))
        self.columns = nn.Parameter(torch.zeros(2 * grid[1] - 1, head_dim))

    def forward(self, query: Tensor, grid: tuple[int, int]) -> Tensor:
        """What is added to the attention's scores, [B, heads, P + N, P + N].

        Prefix tokens have no place on the grid: their rows and columns are zero.

        Args:
            query: [B, heads, P + N, d], before its scaling.
            grid: (h, w) of the patches.
        """
        num_prefix = query.shape[2] - grid[0] * grid[1]
        places = query[:, :, num_prefix:].unflatten(2, grid)  # [B, heads, h, w, d]
        by_row = torch.einsum("bnhwd,hkd->bnhwk", places, _of_pairs(self.rows, grid[0]))
        by_column = torch.einsum("bnhwd,wkd->bnhwk", places, _of_pairs(self.columns, grid[1]))
        both = by_row[..., :, None] + by_column[..., None, :]  # [B, heads, h, w, h, w]
        return F.pad(both.flatten(4).flatten(2, 3), (num_prefix, 0, num_prefix, 0))


def _of_pairs(table: Tensor, size: int) -> Tensor:
    """A table [2 s - 1, d] -> the entry of each pair of places, [size, size, d]."""
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    place = torch.arange(size, device=table.device)
    return table[place[:, None] - place[None] + size - 1]
