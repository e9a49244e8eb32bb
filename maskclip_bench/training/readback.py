"""Loss terms read without making the device wait, and agreed on by all ranks."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from maskclip_bench import distributed


class Readback:
    """Loss terms on their way to the CPU, while the device goes on with the backward pass."""

    def __init__(self, terms: dict[str, Tensor], *, stop: bool) -> None:
        names = [name for name in terms if name != "loss"]
        self._names = ["loss", *names]
        losses = torch.stack([terms[name].detach().float() for name in self._names])
        flags = torch.stack([(~losses.isfinite().all()).float(), losses.new_tensor(float(stop))])
        if distributed.is_distributed():  # all ranks skip, or stop, or none
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            losses = distributed.all_reduce_mean(losses)
        packed = torch.cat([losses, flags])
        self._event: torch.cuda.Event | None = None
        if packed.is_cuda:
            self._packed = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            self._packed.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._packed = packed
        self.terms: dict[str, float] = {}
        self.values: dict[str, float] = {}
        self.stop = False

    def wait(self) -> bool:
        """Fill `terms` and `stop`; True if every term is finite on every rank."""
        if self._event is not None:
            self._event.synchronize()
        *losses, nonfinite, stop = self._packed.tolist()
        self.terms = dict(zip(self._names, losses, strict=True))
        self.stop = bool(stop)
        return not nonfinite

    def not_finite(self) -> str:
        """The names of the terms that are not finite, as the subject of a sentence."""
        bad = [name for name in self._names[1:] if not math.isfinite(self.terms[name])]
        return f"{' and '.join(bad or ['the gradient'])} {'are' if len(bad) > 1 else 'is'}"
