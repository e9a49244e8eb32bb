"""Gradient accumulation with all negatives: embeddings are cached, gradients stay exact.

A contrastive loss needs the embeddings of the whole batch, and a device may hold the activations
of a part only. So a step goes twice through its micro-batches (gradient caching, Gao et al.,
arXiv 2101.06983):

1. without gradient, to collect the embeddings (`Method.embed`, which leaves out the passes that do
   not contribute to them); the loss over all of them, and its gradient with respect to each
   embedding, are computed once;
2. with gradient, one micro-batch at a time: the gradient of the embeddings is sent back through
   the network, together with the terms that concern each sample alone.

The second pass must draw what the first drew: both start from the same generators.
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
    before = [buffer.clone() for buffer in method.buffers()]
    embeddings: list[dict[str, Tensor]] = []
    with torch.no_grad(), autocast():
        for number, batch in enumerate(batches):
            reseed(number)
            embeddings.append(method.embed(batch))
    with torch.no_grad():  # running statistics belong to the second pass alone
        for buffer, value in zip(method.buffers(), before, strict=True):
            buffer.copy_(value)

    terms: dict[str, Tensor] = {}
    gradients: dict[str, tuple[Tensor, ...]] = {}
    if embeddings[0]:
        whole = {
            name: torch.cat([part[name] for part in embeddings]).requires_grad_()
            for name in embeddings[0]
        }  # each [B, ...]
        sizes = [len(batch.images) for batch in batches]
        with autocast():
            contrastive = method.contrast(whole)
        terms.update({name: term.detach() for name, term in contrastive.items()})
        torch.stack(list(contrastive.values())).sum().backward()
        gradients = {
            name: (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad).split(sizes)
            for name, tensor in whole.items()
        }

    for number, batch in enumerate(batches):
        reseed(number)
        with autocast():
            parts, local = method.encode(batch)
            share = len(batch.images) / sum(len(other.images) for other in batches)
            surrogate = torch.zeros((), device=batch.images.device)
            for term in local.values():
                surrogate = surrogate + share * term
            for name, part in parts.items():
                if part.requires_grad:
                    surrogate = surrogate + (part * gradients[name][number]).sum()
        if surrogate.requires_grad:
            surrogate.backward()
        for name, term in local.items():
            terms[name] = terms.get(name, 0) + share * term.detach()
    return {**terms, "loss": torch.stack(list(terms.values())).sum()}
