"""SLIP (arXiv 2112.12750): CLIP on the image, SimCLR on two augmented views of it."""

from __future__ import annotations

from pydantic import Field

from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
)
from maskclip_bench.pretrain.methods.parts.two_views import TwoViews, TwoViewsConfig


class SLIPConfig(ContrastiveConfig, TwoViewsConfig):
    """Fields of SLIP."""

    ssl_weight: float = Field(default=1.0, ge=0)
    """Weight of the SimCLR loss (SLIP: 1)."""


class SLIP(ContrastiveMethod):
    """Three image passes, one text pass."""

    Config = SLIPConfig
    num_ssl_views = 2
    relative_cost = 2.4

    def __init__(self, config: SLIPConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.ssl_weight = config.ssl_weight
        self.ssl_head = TwoViews(self.model.visual.trunk, config)

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Embeddings of the pair, and pooled tokens [B, D] of the two views."""
        views = self.ssl_head.see(self.model.visual.trunk, batch)
        return {**self.encode_pairs(batch), **views}, {}

    def contrast(self, embeddings: Embeddings) -> Terms:
        """CLIP's loss and SimCLR's."""
        loss = self.ssl_weight * self.ssl_head.loss(embeddings)
        return {**super().contrast(embeddings), "ssl_loss": loss}
