"""kNN segmentation: the nearest labelled patches vote (Balazevic et al., arXiv 2306.01667).

N patches, C classes, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip_bench.tasks.protocols.base import ProtocolContext
from maskclip_bench.tasks.protocols.patch_segmentation import PatchProtocol, training_bank
from maskclip_bench.unit_vectors import unit_vectors

NUM_NEIGHBORS = 30
TEMPERATURE = 0.02
"""Of the votes, as in the paper."""


class KnnSegmentation(PatchProtocol):
    """The nearest labelled patches vote."""

    name = "knn_segmentation"
    title = "Segmentation, frozen kNN"

    def scorer(
        self, context: ProtocolContext, num_classes: int
    ) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
        """Votes of the nearest patches."""
        bank = training_bank(context, num_classes)
        keys = unit_vectors(bank.tokens).to(context.device)
        labels = bank.labels.to(context.device)
        num_neighbors = min(NUM_NEIGHBORS, len(keys))

        def score(tokens: Tensor) -> Tensor:
            similarity, index = (unit_vectors(tokens) @ keys.T).topk(num_neighbors, dim=1)
            weights = F.softmax(similarity / TEMPERATURE, dim=1)  # [N, K]
            return torch.einsum("nk,nkc->nc", weights, labels[index])

        details = {"k": num_neighbors, "temperature": TEMPERATURE, "bank": len(keys)}
        return score, details
