"""CLIP: the contrastive loss alone (arXiv 2103.00020); the baseline of every comparison."""

from __future__ import annotations

from maskclip_bench.data.batch import Batch
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
)


class CLIP(ContrastiveMethod):
    """One image pass, one text pass."""

    Config = ContrastiveConfig

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Embeddings of both towers."""
        return self.encode_pairs(batch), {}
