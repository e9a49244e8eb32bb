"""Which patches are hidden. B images, N patches, V visible, M hidden; True = masked (hidden)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
        return PatchMask(
            self.hidden.to(device), self.visible_ids.to(device), self.hidden_ids.to(device)
        )


def num_hidden(num_patches: int, ratio: float) -> int:
    """Patches that a mask ratio hides: rounded, at least one hidden and one visible."""
    return min(max(round(num_patches * ratio), 1), num_patches - 1)


def random_mask(
    num_images: int, num_patches: int, ratio: float, generator: torch.Generator
) -> PatchMask:
    """Hide each patch with the same chance (MAE; the paper's choice, ratio 0.75)."""
    noise = torch.rand(num_images, num_patches, generator=generator)
    hidden = torch.zeros(num_images, num_patches, dtype=torch.bool)
    chosen = noise.argsort(dim=1)[:, : num_hidden(num_patches, ratio)]
    return PatchMask.from_hidden(hidden.scatter_(1, chosen, True))


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
    masks = []
    for _ in range(num_images):
        hidden = torch.zeros(height, width, dtype=torch.bool)
        missing = wanted
        while missing > 0:
            draw = torch.rand(4, generator=generator).tolist()
            area = min_patches + draw[0] * max(0, missing - min_patches)
            aspect = math.exp(log_aspect * (1 - 2 * draw[1]))
            rows = min(height, max(1, round(math.sqrt(area * aspect))))
            columns = min(width, max(1, round(math.sqrt(area / aspect))))
            top = int(draw[2] * (height - rows + 1))
            left = int(draw[3] * (width - columns + 1))
            window = hidden[top : top + rows, left : left + columns]
            fresh = (~window).nonzero()[:missing]
            window[fresh[:, 0], fresh[:, 1]] = True
            missing -= len(fresh)
        masks.append(hidden.flatten())
    return PatchMask.from_hidden(torch.stack(masks))


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens [B, N, D] by ids [B, K] -> [B, K, D]."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
