"""FILIP (arXiv 2111.07783): token-wise late interaction between image and caption.

The similarity of an image to a caption is the mean over its tokens of each one's best match among
the caption's words, and the other way round for a caption to an image. Tokens are projected into
the joint space by the projections of the towers. FILIP's own reduction of the exchanged tokens to
the quarter with the largest similarity is left out: it saves communication only.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from maskclip_bench import distributed
from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.losses import late_interaction_loss
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import image_tokens
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
    packed_text,
    vit_of,
)


class FILIPConfig(ContrastiveConfig):
    """Fields of FILIP."""

    global_weight: float = Field(default=1.0, ge=0)
    """Weight of CLIP's loss on class and end token. FILIP has none (0) and compares tokens at test
    time too; the protocols here compare one embedding an image, which this trains."""


class FILIP(ContrastiveMethod):
    """One image pass, one text pass; every token of both is compared."""

    Config = FILIPConfig
    relative_cost = 4.5

    def __init__(self, config: FILIPConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.config = config
        vit_of(self)

    @property
    def trains_pairs(self) -> bool:
        """Without CLIP's loss only tokens are compared."""
        return self.config.global_weight > 0

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Tokens in the joint space: images' [B, P + N, J], captions' [B, L, J] and which are."""
        trunk = vit_of(self).trunk
        tokens = image_tokens(trunk, batch.images)  # [B, P + N, D]
        text = packed_text(self, batch)
        words = text.everywhere() @ self.model.text.text_projection
        words = F.normalize(words.float(), dim=-1)  # [K, J]
        embeddings = {
            "image_tokens": F.normalize(self.model.visual.head(tokens).float(), dim=-1),
            "text_tokens": text.layout.pad(words),
            "is_word": text.layout.is_word.float(),
        }
        if self.config.global_weight:
            pooled = self.model.visual.head(trunk.forward_head(tokens))
            embeddings["image_features"] = F.normalize(pooled, dim=-1)
            embeddings["text_features"] = words.index_select(0, text.layout.ends)
        return embeddings, {}

    def contrast(self, embeddings: Embeddings) -> Terms:
        """Late interaction in both directions, and CLIP's loss if asked for."""
        words, is_word = self._equally_long(embeddings["text_tokens"], embeddings["is_word"])
        image_to_text, text_to_image = late_interaction_loss(
            embeddings["image_tokens"],
            words,
            is_word,
            self.model.logit_scale.exp(),
            gather=self.gather,
        )
        terms = {"late_interaction_loss": (image_to_text + text_to_image) / 2}
        if self.config.global_weight:
            loss = super().contrast(embeddings)["contrastive_loss"]
            terms["contrastive_loss"] = self.config.global_weight * loss
        return terms

    def _equally_long(self, words: Tensor, is_word: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, J] and [B, L] with the same L on every rank: the longest possible.

        The longest caption of all ranks is hardly shorter in a large batch, and the host would have
        to wait for it.
        """
        if not distributed.is_distributed():
            return words, is_word
        missing = self.model.text.context_length - words.shape[1]
        return F.pad(words, (0, 0, 0, missing)), F.pad(is_word, (0, missing))
