"""Numbers read without making the device wait, and agreed on by all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from maskclip_bench import distributed


def agreed(terms: Mapping[str, Tensor], *, stop: bool) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Loss terms over the global batch, and whether a rank has a bad one or was asked to stop.

    Args:
        terms: Of this rank, each a scalar; "loss" is their sum.
        stop: Whether this rank was asked to stop.

    Returns:
        The terms, "loss" first, as means over ranks; two flags, each 0 or 1: a term of any rank is
        not finite, any rank was asked to stop.
    """
    names = ["loss", *(name for name in terms if name != "loss")]
    losses = torch.stack([terms[name].detach().float() for name in names])
    asked = torch.full((), float(stop), device=losses.device)
    flags = torch.stack([(~losses.isfinite().all()).float(), asked])
    if distributed.is_distributed():  # all ranks skip, or stop, or none
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        losses = distributed.all_reduce_mean(losses)
    return dict(zip(names, losses.unbind(), strict=True)), flags[0], flags[1]


class Readback:
    """Numbers on their way to the CPU, in one transfer, while the device goes on.

    Args:
        values: Scalars on the device, or numbers, which stay as they are.
        vector: Names, and one number for each of them on the device, [N]. Where there are many, as
            many scalars would cost the device as many copies.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor | float],
        vector: tuple[Sequence[str], Tensor] | None = None,
    ) -> None:
        self._values = dict(values)
        self._names = vector[0] if vector else ()
        scalars = [_exact(value) for value in values.values() if isinstance(value, Tensor)]
        parts = [torch.stack(scalars)] if scalars else []
        parts += [_exact(vector[1])] if vector else []
        self._event: torch.cuda.Event | None = None
        self._packed: Tensor | None = None
        if not parts:
            return
        packed = torch.cat(parts)
        if packed.is_cuda:
            self._packed = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            self._packed.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._packed = packed

    def wait(self) -> dict[str, float]:
        """The numbers, by name, in their order; those of the vector last."""
        if self._event is not None:
            self._event.synchronize()
        numbers = iter([] if self._packed is None else self._packed.tolist())
        found = {
            name: next(numbers) if isinstance(value, Tensor) else value
            for name, value in self._values.items()
        }
        return found | dict(zip(self._names, numbers, strict=True))


def _exact(value: Tensor) -> Tensor:
    """Float32, or double where that would lose digits."""
    value = value.detach()
    return value if value.dtype == torch.float32 else value.double()
