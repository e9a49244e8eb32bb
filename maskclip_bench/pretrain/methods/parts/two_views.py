"""Two augmented views of an image against each other (SimCLR, arXiv 2002.05709).

Head, temperature and sizes are those of facebookresearch/SLIP (`models.py`, `losses.py`).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from maskclip_bench.config import Declaration
from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.losses import simclr_loss
from maskclip_bench.modeling.projection_head import SimCLRHead
from maskclip_bench.modeling.towers import pooled_image


class TwoViewsConfig(Declaration):
    """Fields of every method that compares two views."""

    ssl_temperature: float = Field(default=0.1, gt=0)
    """Softmax temperature (SLIP: 0.1)."""
    ssl_hidden_dim: int = Field(default=4096, ge=1)
    """Width of the head (SLIP: 4096)."""
    ssl_output_dim: int = Field(default=256, ge=1)
    """Width of its embedding (SLIP: 256)."""


class TwoViews(SimCLRHead):
    """SimCLR's head, and its loss.

    Args:
        trunk: The student's trunk, of any kind.
        config: Sizes and temperature.
    """

    def __init__(self, trunk: Any, config: TwoViewsConfig) -> None:
        super().__init__(trunk.num_features, config.ssl_hidden_dim, config.ssl_output_dim)
        self.temperature = config.ssl_temperature

    def see(self, trunk: Any, batch: Batch) -> dict[str, Tensor]:
        """Pooled tokens of the two views, each [B, D]."""
        first, second = (pooled_image(trunk, view) for view in batch.ssl_views)
        return {"first_view": first, "second_view": second}

    def loss(self, embeddings: dict[str, Tensor]) -> Tensor:
        """NT-Xent of what `see` gave; the head's batch norm sees the whole batch."""
        return simclr_loss(
            self(embeddings["first_view"]),
            self(embeddings["second_view"]),
            temperature=self.temperature,
        )
