"""The online quantizer: patch features -> soft assignment over learned codewords."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodewordHead(nn.Module):
    """MLP, bottleneck, and cosine similarity to K codewords (iBOT's and DINO's head).

    Args:
        input_dim: Width of the features.
        hidden_dim: Width of the MLP.
        bottleneck_dim: Width in which codewords live.
        num_codewords: K.
        depth: Linear layers of the MLP; DINO's is 3.
    """

    def __init__(
        self,
        *,
        input_dim: int,
        hidden_dim: int,
        bottleneck_dim: int,
        num_codewords: int,
        depth: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = input_dim
        for _ in range(depth - 1):
            layers += [nn.Linear(width, hidden_dim), nn.GELU()]
            width = hidden_dim
        self.mlp = nn.Sequential(*layers, nn.Linear(width, bottleneck_dim))
        self.codewords = nn.Parameter(torch.empty(num_codewords, bottleneck_dim))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.codewords)

    def forward(self, features: Tensor) -> Tensor:
        """Features [..., D] -> cosine similarities to the codewords [..., K]."""
        bottleneck = F.normalize(self.mlp(features), dim=-1)
        return bottleneck @ F.normalize(self.codewords, dim=-1).T.to(bottleneck.dtype)
