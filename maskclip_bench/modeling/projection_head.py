"""SimCLR's projection head, with batch norm over the global batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maskclip_bench import distributed


class SimCLRHead(nn.Module):
    """Three linear layers, batch norm over all processes and ReLU between them.

    Args:
        input_dim: D.
        hidden_dim: Width of both hidden layers (SLIP: 4096).
        output_dim: P (SLIP: 256).
    """

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
        """Pooled tokens [B, D] -> L2-normalised embeddings [B, P], in float32."""
        return F.normalize(self.layers(pooled).float(), dim=-1)


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm with the statistics of the global batch, on any device.

    torch's `SyncBatchNorm` is for GPUs only. In one process this is `BatchNorm1d` itself.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """[B, D] -> [B, D]; B is the same on every rank."""
        if not (self.training and distributed.is_distributed()):
            return super().forward(input)
        values = input.float()
        total = len(values) * distributed.world_size()
        mean = _SumOverRanks.apply(values.sum(0)) / total  # [D]
        centred = values - mean
        variance = _SumOverRanks.apply(centred.square().sum(0)) / total  # [D]
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * total / (total - 1), momentum)
            self.num_batches_tracked += 1
        normalized = centred * (variance + self.eps).rsqrt()
        return (normalized * self.weight + self.bias).to(input.dtype)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too: every rank's loss depends on every rank."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _summed(grad)


def _summed(tensor: Tensor) -> Tensor:
    result = tensor.contiguous().clone()
    dist.all_reduce(result)
    return result
