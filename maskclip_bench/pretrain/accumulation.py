"""Gradient accumulation with all negatives: embeddings are cached, gradients stay exact.

A contrastive loss needs the embeddings of the whole batch, and a device may hold the activations
of a part only. So a step goes twice through its micro-batches but the last (gradient caching, Gao
et al., arXiv 2101.06983):

1. all but the last, without gradient, to collect the embeddings (`Method.embed`, which leaves out
   what does not contribute to them);
2. the last one, with gradient; the loss over the embeddings of all, and its gradient with respect
   to each of them;
3. all but the last again, now with gradient, one at a time: the gradient of the embeddings is sent
   back through the network, together with the terms that concern each sample alone.

The third pass must draw what the first drew: both start from the same generators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from maskclip_bench.data.batch import Batch
from maskclip_bench.pretrain.methods.base import Method


def accumulated_backward(
    method: Method,
    batches: Sequence[Batch],
    *,
    reseed: Callable[[int], None],
    autocast: Callable[[], AbstractContextManager[object]],
) -> dict[str, Tensor]:
    """Losses of the union of `batches`, and their gradient added to the parameters'.

    Args:
        method: Its `embed`, `encode` and `contrast` are called, never its `forward`.
        batches: Micro-batches, in the order of the whole batch.
        reseed: Called with the micro-batch's number before it is encoded; sets every generator it
            draws from, so that both passes draw the same.
        autocast: Makes the context that forward passes run in.

    Returns:
        The loss terms over the whole batch, detached, and "loss", their sum.
    """
    *others, last = range(len(batches))
    total = sum(len(batch.images) for batch in batches)
    cached = _embedded(method, batches[:last], reseed=reseed, autocast=autocast)

    reseed(last)
    with autocast():
        parts, local = method.encode(batches[last])
        whole = {
            name: torch.cat([*(other[name] for other in cached), part])
            for name, part in parts.items()
        }  # each [B, ...]
        across = method.contrast(whole) if whole else {}
        share = len(batches[last].images) / total
        weighted = {name: share * term for name, term in local.items()}
        loss = torch.stack([*across.values(), *weighted.values()]).sum()
    loss.backward()
    terms = {name: term.detach() for name, term in [*across.items(), *weighted.items()]}

    for number in others:
        reseed(number)
        share = len(batches[number].images) / total
        with autocast():
            parts, local = method.encode(batches[number])
            surrogate = torch.zeros((), device=batches[number].images.device)
            for term in local.values():
                surrogate = surrogate + share * term
            for name, part in parts.items():
                gradient = cached[number][name].grad
                if part.requires_grad and gradient is not None:
                    surrogate = surrogate + (part * gradient).sum()
        if surrogate.requires_grad:
            surrogate.backward()
        for name, term in local.items():
            terms[name] = terms[name] + share * term.detach()
        for name, of_term in method.linear_embeddings.items():
            if name in parts:  # was 0 in the loss, and its gradient does not depend on it
                gradient = cached[number][name].grad
                assert gradient is not None
                terms[of_term] = terms[of_term] + (parts[name].detach() * gradient).sum()
    return {**terms, "loss": torch.stack(list(terms.values())).sum()}


def _embedded(
    method: Method,
    batches: Sequence[Batch],
    *,
    reseed: Callable[[int], None],
    autocast: Callable[[], AbstractContextManager[object]],
) -> list[dict[str, Tensor]]:
    """Embeddings of each micro-batch, as leaves that get a gradient; buffers stay as they are."""
    before = [buffer.clone() for buffer in method.buffers()]
    embeddings: list[dict[str, Tensor]] = []
    with torch.no_grad(), autocast():
        for number, batch in enumerate(batches):
            reseed(number)
            embeddings.append(method.embed(batch))
    with torch.no_grad():  # running statistics belong to the passes with gradient
        for buffer, value in zip(method.buffers(), before, strict=True):
            buffer.copy_(value)
    return [
        {name: part.detach().requires_grad_() for name, part in parts.items()}
        for parts in embeddings
    ]
