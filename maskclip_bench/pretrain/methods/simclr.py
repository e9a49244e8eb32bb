"""SimCLR (arXiv 2002.05709) on a ViT, as SLIP trains it: two augmented views, no captions."""

from __future__ import annotations

from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.pretrain.methods.base import Embeddings, ImageOnlyMethod, Terms
from maskclip_bench.pretrain.methods.parts.two_views import TwoViews, TwoViewsConfig


class SimCLR(ImageOnlyMethod):
    """Two image passes."""

    Config = TwoViewsConfig
    num_ssl_views = 2
    relative_cost = 1.9

    def __init__(self, config: TwoViewsConfig, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        self.ssl_head = TwoViews(self.model.visual.trunk, config)

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Pooled tokens [B, D] of the two views."""
        return self.embed(batch), {}

    def embed(self, batch: Batch) -> Embeddings:
        """Pooled tokens [B, D] of the two views."""
        return self.ssl_head.see(self.model.visual.trunk, batch)

    def contrast(self, embeddings: Embeddings) -> Terms:
        """NT-Xent."""
        return {"ssl_loss": self.ssl_head.loss(embeddings)}
