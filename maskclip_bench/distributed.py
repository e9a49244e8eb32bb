"""torch.distributed, for one process and for many: ranks, gathering with and without gradient.

Started by `torchrun` (or Slurm through submitit), which set the environment this module reads.
Every function works, and is free, in a single process without a process group.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_distributed() -> bool:
    """True when a process group of more than one process exists."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_rank() -> int:
    """Rank of this process on its machine (`LOCAL_RANK`), 0 by default."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """True on the one process that logs and writes."""
    return rank() == 0


@contextlib.contextmanager
def process_group(device: torch.device, *, timeout_seconds: float = 1800.0) -> Iterator[None]:
    """Join the group that `torchrun` describes in the environment; nothing to do without it."""
    if int(os.environ.get("WORLD_SIZE", 1)) <= 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(local_rank())
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_seconds)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        dist.barrier()


def gather(tensor: Tensor, *, with_gradient: bool) -> Tensor:
    """Concatenate `tensor` [B, ...] of all ranks, in rank order -> [world_size * B, ...].

    Args:
        tensor: Of the same shape on every rank.
        with_gradient: Whether gradients flow back to every rank's tensor (summed over the ranks
            that used it). Without, several ranks get constants, their own part included, as from
            `all_gather_batch` of facebookresearch/SLIP (`utils.py`); one process keeps its tensor.
    """
    if not is_distributed():
        return tensor
    if with_gradient:
        return _GatherWithGradient.apply(tensor)
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Mean over ranks, without gradient."""
    if not is_distributed():
        return tensor
    result = tensor.detach().clone()
    dist.all_reduce(result)
    return result / world_size()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, without gradient."""
    if not is_distributed():
        return tensor
    result = tensor.detach().clone()
    dist.all_reduce(result)
    return result


class _GatherWithGradient(torch.autograd.Function):
    """Concatenation over ranks; the gradient of each part is summed over the ranks that used it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        whole = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
        dist.all_gather(list(whole.chunk(world_size())), tensor.contiguous())
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        if dist.get_backend() == "nccl":
            own = grad.new_empty(len(grad) // world_size(), *grad.shape[1:])
            dist.reduce_scatter_tensor(own, grad)
            return own
        summed = grad.clone()
        dist.all_reduce(summed)
        return summed.chunk(world_size())[rank()]
