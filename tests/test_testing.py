"""The conformance tests pass for what is built in, and fail for what is broken on purpose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import Field

from maskclip_bench.config import Declaration
from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.pretrain.methods.base import ContrastiveConfig, ContrastiveMethod, Embeddings
from maskclip_bench.testing import check_method

Terms = dict[str, torch.Tensor]


@pytest.mark.parametrize("name", ["clip", "clip_mae", "simclr", "simmim"])
def test_check_method__what_is_built_in(name: str) -> None:
    small = {
        "simclr": {"ssl_hidden_dim": 32, "ssl_output_dim": 16},
        "simmim": {"mask_patch_size": 16},
    }
    check_method(name, small.get(name, {}))


class KoLeoConfig(ContrastiveConfig):
    koleo_weight: float = Field(default=0.1, ge=0)
    """Weight of the KoLeo term."""
    unused: float = 1.0
    """Changes nothing."""


class KoLeo(ContrastiveMethod):
    """CLIP and a term that spreads the image embeddings (DINOv2's KoLeo)."""

    Config: Any = KoLeoConfig

    def __init__(self, config: KoLeoConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.weight = config.koleo_weight

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        return self.encode_pairs(batch), {}

    def contrast(self, embeddings: Embeddings) -> Terms:
        features = embeddings["image_features"]
        distances = torch.cdist(features, features) + 2 * torch.eye(len(features))
        spread = -(distances.min(dim=1).values + 1e-4).log().mean()
        return {**super().contrast(embeddings), "koleo_loss": self.weight * spread}


def test_check_method__every_field() -> None:
    check_method(KoLeo, changes={"koleo_weight": 1.0}, exempt={"gather", "unused"})
    together = {"unused": {"unused": 2.0, "koleo_weight": 1.0}}
    with pytest.raises(AssertionError, match=r"changing \['unused'\] changes neither"):
        check_method(KoLeo, changes={"koleo_weight": 1.0, **together}, exempt={"gather"})
    with pytest.raises(AssertionError, match=r"changing \['unused'\] changes neither"):
        check_method(
            KoLeo, changes={"koleo_weight": 1.0, "unused": 2.0}, exempt={"gather"}, num_steps=2
        )
    with pytest.raises(AssertionError, match=r"another value for \['unused'\]"):
        check_method(KoLeo, changes={"koleo_weight": 1.0}, exempt={"gather"})
    with pytest.raises(AssertionError, match=r"has no \['nothing'\]"):
        check_method(
            KoLeo, changes={"koleo_weight": 1.0, "nothing": 1}, exempt={"gather", "unused"}
        )


class Ambient(KoLeo):
    def contrast(self, embeddings: Embeddings) -> Terms:
        terms = super().contrast(embeddings)
        return {**terms, "koleo_loss": terms["koleo_loss"] * (1 + torch.rand(()))}


class NotFinite(KoLeo):
    def contrast(self, embeddings: Embeddings) -> Terms:
        return {**super().contrast(embeddings), "koleo_loss": torch.tensor(float("nan"))}


class WrongName(KoLeo):
    def contrast(self, embeddings: Embeddings) -> Terms:
        terms = super().contrast(embeddings)
        return {**terms, "koleo": terms.pop("koleo_loss")}


class Unused(KoLeo):
    def __init__(self, config: KoLeoConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.head = torch.nn.Linear(2, 2)


class Climbs(KoLeo):
    def contrast(self, embeddings: Embeddings) -> Terms:
        return {name: -value for name, value in super().contrast(embeddings).items()}

    def forward(self, batch: Batch) -> Terms:
        terms = super().forward(batch)
        # What is logged is the opposite of what is minimized.
        return {n: 2 * v.detach() - v for n, v in terms.items()}


class NoConfig(Declaration):
    """Without fields."""


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Ambient, "depends on torch's global generator"),
        (NotFinite, "koleo_loss is nan"),
        (WrongName, "koleo ends in no _loss"),
        (Unused, r"no gradient reaches \['head.weight', 'head.bias'\]"),
        (Climbs, "the loss went from"),
    ],
)
def test_check_method__what_is_broken(cls: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(cls)
