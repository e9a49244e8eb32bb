"""SLIP (arXiv 2112.12750): CLIP on the image, SimCLR on two augmented views of it.

Head, temperature and weight are those of facebookresearch/SLIP (`models.py`, `losses.py`).
"""

from __future__ import annotations

import torch
import torch.distributed.nn.functional as dist_functional
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from maskclip_bench import distributed
from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.losses import simclr_loss
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import image_tokens
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
)


class SLIPConfig(ContrastiveConfig):
    """Fields of SLIP."""

    ssl_weight: float = Field(default=1.0, ge=0)
    """Weight of the SimCLR loss (SLIP: 1)."""
    ssl_temperature: float = Field(default=0.1, gt=0)
    """SimCLR's temperature (SLIP: 0.1)."""
    ssl_hidden_dim: int = 4096
    """Width of the head (SLIP: 4096)."""
    ssl_output_dim: int = 256
    """Width of its embedding (SLIP: 256)."""


class SLIP(ContrastiveMethod):
    """Three image passes (the two views in one), one text pass."""

    Config = SLIPConfig
    num_ssl_views = 2
    relative_cost = 2.7

    def __init__(self, config: SLIPConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.weight, self.temperature = config.ssl_weight, config.ssl_temperature
        self.ssl_head = SimCLRHead(
            self.model.visual.trunk.embed_dim, config.ssl_hidden_dim, config.ssl_output_dim
        )

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Embeddings of the pair, and of the two views."""
        embeddings, _ = self.encode_pairs(batch)
        trunk = self.model.visual.trunk
        views = torch.cat(list(batch.ssl_views))  # [2B, 3, S, S]
        pooled = trunk.forward_head(image_tokens(trunk, views))  # [2B, D]
        first, second = (self.ssl_head(part) for part in pooled.chunk(2))
        return {**embeddings, "first_view": first, "second_view": second}, {}

    def contrast(self, embeddings: Embeddings) -> Terms:
        """CLIP's loss and SimCLR's."""
        loss = simclr_loss(
            embeddings["first_view"], embeddings["second_view"], temperature=self.temperature
        )
        return {**super().contrast(embeddings), "ssl_loss": self.weight * loss}


class SimCLRHead(nn.Module):
    """Three linear layers, batch norm over all processes and ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_dim, hidden_dim),
            GlobalBatchNorm(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim),
            GlobalBatchNorm(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, output_dim),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled tokens [B, D] -> L2-normalised embedding [B, output]."""
        return F.normalize(self.layers(pooled).float(), dim=-1)


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics are those of the global batch, on any device.

    torch's `SyncBatchNorm` is for GPUs only; in one process this is `BatchNorm1d` itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        if not (self.training and distributed.is_distributed()):
            return super().forward(input)
        local = torch.stack([input.float().mean(0), input.float().square().mean(0)])
        mean, square = dist_functional.all_reduce(local) / distributed.world_size()
        variance = square - mean.square()
        total = len(input) * distributed.world_size()
        with torch.no_grad():
            momentum = self.momentum or 0.1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * total / (total - 1), momentum)
            self.num_batches_tracked += 1
        normalized = (input.float() - mean) * (variance + self.eps).rsqrt()
        return (normalized * self.weight + self.bias).to(input.dtype)
