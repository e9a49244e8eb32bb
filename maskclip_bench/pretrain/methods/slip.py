"""SLIP (arXiv 2112.12750): CLIP on the image, SimCLR on two augmented views of it.

Head, temperature and weight are those of facebookresearch/SLIP (`models.py`, `losses.py`).
"""

from __future__ import annotations

from pydantic import Field

from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.losses import simclr_loss
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.projection_head import SimCLRHead
from maskclip_bench.modeling.towers import pooled_image
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
)


class SLIPConfig(ContrastiveConfig):
    """Fields of SLIP."""

    ssl_weight: float = Field(default=1.0, ge=0)
    """Weight of the SimCLR loss (SLIP: 1)."""
    ssl_temperature: float = Field(default=0.1, gt=0)
    """SimCLR's temperature (SLIP: 0.1)."""
    ssl_hidden_dim: int = 4096
    """Width of the head (SLIP: 4096)."""
    ssl_output_dim: int = 256
    """Width of its embedding (SLIP: 256)."""


class SLIP(ContrastiveMethod):
    """Three image passes, one text pass."""

    Config = SLIPConfig
    num_ssl_views = 2
    relative_cost = 2.4

    def __init__(self, config: SLIPConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.config = config
        self.ssl_head = SimCLRHead(
            self.model.visual.trunk.num_features, config.ssl_hidden_dim, config.ssl_output_dim
        )

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Embeddings of the pair, and pooled tokens [B, D] of the two views."""
        trunk = self.model.visual.trunk
        first, second = (pooled_image(trunk, view) for view in batch.ssl_views)
        return {**self.encode_pairs(batch), "first_view": first, "second_view": second}, {}

    def contrast(self, embeddings: Embeddings) -> Terms:
        """CLIP's loss and SimCLR's; the head's batch norm sees the whole batch."""
        loss = simclr_loss(
            self.ssl_head(embeddings["first_view"]),
            self.ssl_head(embeddings["second_view"]),
            temperature=self.config.ssl_temperature,
        )
        return {**super().contrast(embeddings), "ssl_loss": self.config.ssl_weight * loss}
