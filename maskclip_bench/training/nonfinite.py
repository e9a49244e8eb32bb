"""What to look at when losses or gradients stop being finite: ranges, and where it began."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from maskclip_bench.data.batch import Batch

MAX_NAMES = 5


def describe(
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    encode: Callable[[Batch], Mapping[str, Tensor]],
    autocast: Callable[[], AbstractContextManager[object]],
    also: Mapping[str, Tensor] | None = None,
) -> str:
    """Encode the batches of a step again, and say what is in them and in the weights.

    Args:
        module: As it was at that step; of a sharded one, this rank's shards are looked at.
        batches: Micro-batches, each with its generator as at that step.
        encode: Runs the module's forward passes on a batch -> embeddings by name, each [B, ...].
        autocast: Makes the context that forward passes run in.
        also: Further tensors to give the range of, by name.

    Returns:
        Ranges of inputs, embeddings and weights; the parameters with values that are not finite;
        and the first module with an output that is not.
    """
    seen: dict[str, list[Tensor]] = {}
    begun: list[str] = []
    failure = ""
    with torch.no_grad(), _watching(module, begun), autocast():
        try:
            for batch in batches:
                seen.setdefault("images", []).append(batch.images)
                seen.setdefault("tokens", []).append(batch.tokens)
                for name, value in encode(batch).items():
                    seen.setdefault(name, []).append(value)
        except RuntimeError as error:  # the ranges taken until then are worth more than none
            failure = f" The step cannot be repeated: {str(error).splitlines()[0]}."
    seen["weights"] = [local(parameter) for parameter in module.parameters()]
    seen |= {name: [local(tensor)] for name, tensor in (also or {}).items()}
    ranges = ", ".join(f"{name} {value_range(tensors)}" for name, tensors in seen.items())
    bad = not_finite((name, parameter) for name, parameter in module.named_parameters())
    weights = f"Weights not finite: {shortened(bad)}." if bad else "All weights are finite."
    where = f" The first output that is not finite is that of {begun[0]}." if begun else ""
    return f"{ranges}. {weights}{where}{failure}"


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold a value that is not finite."""
    return [name for name, tensor in tensors if not bool(local(tensor).isfinite().all())]


def shortened(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def value_range(tensors: list[Tensor]) -> str:
    """Smallest and largest finite value, and how many are not finite: `-1.2..3.4`."""
    low, high, num_bad, num_values = float("inf"), float("-inf"), 0, 0
    for tensor in tensors:
        values = tensor.detach().float().flatten()
        finite = values[values.isfinite()]
        num_values += len(values)
        num_bad += len(values) - len(finite)
        if len(finite):
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    text = f"{low:.5g}..{high:.5g}" if num_bad < num_values else "none finite"
    return f"{text} ({num_bad} of {num_values} not finite)" if num_bad else text


def local(tensor: Any) -> Tensor:
    """A tensor, or this rank's shard of one that is distributed."""
    detached = tensor.detach()
    return detached.to_local() if hasattr(detached, "to_local") else detached


@contextlib.contextmanager
def _watching(module: nn.Module, begun: list[str]) -> Iterator[None]:
    """Append to `begun` the names of modules, innermost first, whose output is not finite."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(part: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(output.isfinite().all()):
                begun.append(name)

        return look

    handles = [
        part.register_forward_hook(hook(name)) for name, part in module.named_modules() if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
