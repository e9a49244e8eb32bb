"""torch.distributed, for one process and for many: ranks, gathering with and without gradient.

Started by `torchrun` (or Slurm through submitit), which set the environment this module reads.
Every function works, and is free, in a single process without a process group.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskclip_bench import errors


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


def on_main(function: Callable[[], str | None]) -> str:
    """Call `function` on the main process; every rank gets its result, or raises its error.

    Without this an error of one rank leaves the others waiting until the group times out. Ranks
    wait for the result, so the function should take less than the group's timeout.

    Raises:
        MaskCLIPBenchError: `function` raised it, of the same kind on every rank.
        RuntimeError: On other ranks, where `function` raised anything else.
    """
    if not is_distributed():
        return function() or ""
    result: str | None = ""
    error: BaseException | None = None
    if is_main():
        try:
            result = function()
        except BaseException as raised:
            error = raised
    told: dict[str, str] = {"result": result or ""}
    if error is not None:
        told = {"error": type(error).__name__, "message": str(error)}
    told = json.loads(broadcast_text(json.dumps(told)))
    if error is not None:
        raise error
    if "error" in told:
        _raise_again(told["error"], told["message"])
    return told["result"]


def _raise_again(name: str, message: str) -> NoReturn:
    """Raise the error that the main process had."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.MaskCLIPBenchError):
        raise kind(message)
    raise RuntimeError(f"The main process failed: {name}: {message}")


def broadcast_text(text: str) -> str:
    """The main process's text, on every rank."""
    if not is_distributed():
        return text
    on_cuda = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
    content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    size = torch.tensor(len(content), device=device)
    dist.broadcast(size, src=0)
    if not is_main():
        content = torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(content, src=0)
    return bytes(content.tolist()).decode()


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
