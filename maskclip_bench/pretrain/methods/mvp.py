"""MVP (arXiv 2203.05175): hidden patches predict what a frozen CLIP makes of them; no captions.

Known of MVP (its abstract): masked image modelling in BEiT's line, with the tokenizer replaced by
the vision branch of CLIP; ViT-B/16 trained for 300 epochs on ImageNet reaches 52.4 mIoU on ADE20K.

Ours: codes are soft assignments of CLIP's patch features by MaskCLIP's online quantizer, compared
by cross-entropy, or the features themselves, compared by cosine; hidden patches are replaced by a
mask token, in blocks of BEiT's kind and number (arXiv 2106.08254: 75 of 196); one linear layer
predicts. Each is a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from maskclip_bench.data.batch import Batch, Draw
from maskclip_bench.modeling.masking import MaskKind, PatchMask, draw_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import (
    embed_patches,
    patch_tokens,
    patches_to_tokens,
    take_tokens,
)
from maskclip_bench.pretrain.methods.base import (
    Embeddings,
    ImageOnlyMethod,
    Terms,
    Values,
    vit_of,
)
from maskclip_bench.pretrain.methods.parts.online_quantizer import OnlineQuantizer, QuantizerConfig
from maskclip_bench.pretrain.methods.teacher import FrozenCLIP, ImagesConfig


class MVPConfig(ImagesConfig, QuantizerConfig):
    """Fields of MVP."""

    teacher_model: str = "ViT-B-16"
    """Name of the frozen CLIP in open_clip; its grid of patches must be the student's."""
    teacher_pretrained: str | None = "openai"
    """Tag of its weights (MVP: CLIP trained on 400 million pairs)."""
    mask_ratio: float = Field(default=75 / 196, gt=0, lt=1)
    """Share of the patches hidden (BEiT: 75 of 196)."""
    mask_kind: MaskKind = "block"
    """Which patches are hidden (BEiT: blocks)."""
    loss: Literal["cross_entropy", "cosine"] = "cross_entropy"
    """cross_entropy of soft codes, or 1 - cosine of features; unknown for MVP."""
    quantizer_momentum: float = Field(default=0.996, ge=0, le=1)
    """By which the quantizer of the targets follows the trained one, per step (iBOT's start)."""


class MVP(ImageOnlyMethod):
    """One student pass over all patches, the hidden ones replaced; one teacher pass."""

    Config = MVPConfig
    relative_cost = 1.5

    def __init__(self, config: MVPConfig, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        self.config = config
        vit = vit_of(self)
        self.teacher = FrozenCLIP(
            config.teacher_model,
            config.teacher_pretrained,
            mean=config.image_mean,
            std=config.image_std,
        )
        target_dim = self.teacher.width(model_config.image_size, num_patches=vit.num_patches)
        self.mask_token = nn.Parameter(torch.zeros(vit.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(vit.embed_dim, target_dim)
        self.quantizer: OnlineQuantizer | None = None
        if config.loss == "cross_entropy":
            self.quantizer = OnlineQuantizer(target_dim, config)

    def draw(self, draw: Draw) -> dict[str, Any]:
        """The patches to hide."""
        kind, ratio = self.config.mask_kind, self.config.mask_ratio
        return {
            "mask": draw_mask(kind, draw.num_images, vit_of(self).grid_size, ratio, draw.generator)
        }

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """How well the hidden patches' codes are predicted."""
        vit = vit_of(self)
        mask: PatchMask = self.drawn(batch)["mask"]
        patches = embed_patches(vit.trunk, batch.images, replace=(mask.hidden, self.mask_token))
        tokens = patch_tokens(vit.trunk, patches_to_tokens(vit.trunk, patches))  # [B, N, D]
        predicted = self.head(take_tokens(tokens, mask.hidden_ids))  # [B, M, teacher's width]
        target = take_tokens(self.teacher(batch.images), mask.hidden_ids)
        return {}, {"code_loss": self._compare(predicted, target)}

    def _compare(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.quantizer is None:
            return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean()
        return self.quantizer.loss(predicted, target)

    def update(self, *, step: int, total_steps: int) -> Values:
        """Move the quantizer's centre and the teacher's head in it."""
        if self.quantizer is None:
            return {}
        momentum = self.config.quantizer_momentum
        return self.quantizer.update(momentum, progress=step / total_steps)

    def observe(
        self, values: Mapping[str, float], *, step: int, total_steps: int, lr_share: float = 1.0
    ) -> None:
        """A warning if the quantizer gives no signal."""
        if self.quantizer is not None:
            self.quantizer.warn(values, step=step, total_steps=total_steps, lr_share=lr_share)
