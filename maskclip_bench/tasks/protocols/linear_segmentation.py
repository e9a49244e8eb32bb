"""Linear segmentation: a linear layer trained on standardized, frozen patches.

N patches, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip_bench.tasks.protocols.base import ProtocolContext
from maskclip_bench.tasks.protocols.patch_segmentation import PatchProtocol, training_bank

L2 = 1e-4
"""Weight of the squared weights in the linear layer's loss."""
LBFGS_ITERATIONS = 100


class LinearSegmentation(PatchProtocol):
    """A linear layer on standardized, frozen patches."""

    name = "linear_segmentation"
    title = "Segmentation, frozen linear"

    def scorer(
        self, context: ProtocolContext, num_classes: int
    ) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
        """Class probabilities of the trained layer."""
        bank = training_bank(context, num_classes)
        tokens, labels = bank.tokens.to(context.device), bank.labels.to(context.device)
        shift, scale = tokens.mean(0), tokens.std(0).clamp(min=1e-6)
        context.progress("fitting the linear layer", 0, 1)
        weight, bias = fit_linear((tokens - shift) / scale, labels, l2=L2)

        def score(patches: Tensor) -> Tensor:
            return F.softmax((patches - shift) / scale @ weight.T + bias, dim=-1)

        return score, {"l2": L2, "iterations": LBFGS_ITERATIONS, "bank": len(tokens)}


def fit_linear(tokens: Tensor, labels: Tensor, *, l2: float) -> tuple[Tensor, Tensor]:
    """Weights [C, D] and bias [C] of softmax regression on label shares, by L-BFGS from zero.

    Args:
        tokens: [N, D], standardized.
        labels: [N, C], rows sum to at most 1.
        l2: Weight of the sum of squared weights.
    """
    weight = torch.zeros(labels.shape[1], tokens.shape[1], device=tokens.device)
    bias = torch.zeros(labels.shape[1], device=tokens.device)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=LBFGS_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -(labels * F.log_softmax(tokens @ weight.T + bias, dim=-1)).sum(1).mean()
        loss = loss + l2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()
