"""Vectors of length 1, whatever the scale of what they are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 1e-10
"""Vectors below this length are made longer first: `F.normalize` divides by 1e-12 at least, and the
squares of elements below 1e-19 are 0 in float32."""


def unit_vectors(vectors: Tensor) -> Tensor:
    """L2-normalised along the last axis, `F.normalize` to the last bit where no vector is short.

    Args:
        vectors: [..., D], floating point. A vector of zeros stays one.

    Example:
        >>> unit_vectors(torch.tensor([[3e-30, 4e-30]]))
        tensor([[0.6000, 0.8000]])
    """
    unit = F.normalize(vectors, dim=-1)
    largest = vectors.abs().amax(dim=-1, keepdim=True)
    short = (vectors.norm(dim=-1, keepdim=True) < SHORT) & (largest > 0)
    longer = vectors / torch.where(short, largest, torch.ones_like(largest))
    return torch.where(short, F.normalize(longer, dim=-1), unit)
