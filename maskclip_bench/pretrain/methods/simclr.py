"""SimCLR (arXiv 2002.05709) on a ViT, as SLIP trains it: two augmented views, no captions."""

from __future__ import annotations

from pydantic import Field

from maskclip_bench.config import Declaration
from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.losses import simclr_loss
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.projection_head import SimCLRHead
from maskclip_bench.modeling.towers import pooled_image
from maskclip_bench.pretrain.methods.base import Embeddings, ImageOnlyMethod, Terms


class SimCLRConfig(Declaration):
    """Fields of SimCLR; defaults are SLIP's (facebookresearch/SLIP, `models.py`, `losses.py`)."""

    ssl_temperature: float = Field(default=0.1, gt=0)
    """Softmax temperature (SLIP: 0.1)."""
    ssl_hidden_dim: int = 4096
    """Width of the head (SLIP: 4096)."""
    ssl_output_dim: int = 256
    """Width of its embedding (SLIP: 256)."""


class SimCLR(ImageOnlyMethod):
    """Two image passes."""

    Config = SimCLRConfig
    num_ssl_views = 2
    relative_cost = 1.9

    def __init__(self, config: SimCLRConfig, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        self.config = config
        self.ssl_head = SimCLRHead(
            self.model.visual.trunk.num_features, config.ssl_hidden_dim, config.ssl_output_dim
        )

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Pooled tokens [B, D] of the two views."""
        trunk = self.model.visual.trunk
        first, second = (pooled_image(trunk, view) for view in batch.ssl_views)
        return {"first_view": first, "second_view": second}, {}

    def contrast(self, embeddings: Embeddings) -> Terms:
        """NT-Xent; the head's batch norm sees the whole batch."""
        loss = simclr_loss(
            self.ssl_head(embeddings["first_view"]),
            self.ssl_head(embeddings["second_view"]),
            temperature=self.config.ssl_temperature,
        )
        return {"ssl_loss": loss}
