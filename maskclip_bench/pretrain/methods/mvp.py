"""MVP (arXiv 2203.05175): hidden patches predict what a frozen CLIP makes of them; no captions.

Known of MVP (its abstract): masked image modelling in BEiT's line, with the tokenizer replaced by
the vision branch of CLIP; ViT-B/16 trained for 300 epochs on ImageNet reaches 52.4 mIoU on ADE20K.

Ours: codes are soft assignments of CLIP's patch features by MaskCLIP's online quantizer, compared
by cross-entropy, or the features themselves, compared by cosine; hidden patches are replaced by a
mask token, in blocks of BEiT's kind and number (arXiv 2106.08254: 75 of 196); one linear layer
predicts. Each is a field.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from maskclip_bench import distributed
from maskclip_bench.config import Declaration
from maskclip_bench.data.batch import Batch
from maskclip_bench.data.config import IMAGENET_MEAN, IMAGENET_STD
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.masking import MaskKind, draw_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import (
    embed_patches,
    patch_tokens,
    patches_to_tokens,
    take_tokens,
)
from maskclip_bench.pretrain.methods.base import Embeddings, ImageOnlyMethod, Terms, vit_trunk
from maskclip_bench.pretrain.methods.parts.online_quantizer import (
    CodewordHead,
    codeword_cross_entropy,
)
from maskclip_bench.pretrain.methods.teacher import FrozenCLIP, follow, frozen_copy

Triple = tuple[float, float, float]


class MVPConfig(Declaration):
    """Fields of MVP."""

    teacher_model: str = "ViT-B-16"
    """Name of the frozen CLIP in open_clip; its grid of patches must be the student's."""
    teacher_pretrained: str | None = "openai"
    """Tag of its weights (MVP: CLIP trained on 400 million pairs)."""
    image_mean: Triple = IMAGENET_MEAN
    """Filled in by a recipe with its `data.augment.mean`; images are re-normalized for the
    teacher."""
    image_std: Triple = IMAGENET_STD
    """Filled in by a recipe with its `data.augment.std`."""
    mask_ratio: float = Field(default=75 / 196, gt=0, lt=1)
    """Share of the patches hidden (BEiT: 75 of 196)."""
    mask_kind: MaskKind = "block"
    """Which patches are hidden (BEiT: blocks)."""
    loss: Literal["cross_entropy", "cosine"] = "cross_entropy"
    """cross_entropy of soft codes, or 1 - cosine of features; unknown for MVP."""
    num_codewords: int = Field(default=8192, ge=2)
    """Codes (BEiT's vocabulary has 8192 too)."""
    codeword_hidden_dim: int = 2048
    """Width of the quantizer's MLP (iBOT)."""
    codeword_dim: int = 256
    """Width of a codeword (iBOT)."""
    student_temp: float = Field(default=0.1, gt=0)
    """Student's softmax temperature (iBOT)."""
    teacher_temp: float = Field(default=0.04, gt=0)
    """Teacher's softmax temperature (iBOT)."""
    center_momentum: float = Field(default=0.9, ge=0, le=1)
    """Of the centre subtracted from the teacher's logits (iBOT). With 1 nothing is subtracted."""
    quantizer_momentum: float = Field(default=0.996, ge=0, le=1)
    """By which the quantizer of the targets follows the trained one, per step (iBOT's start)."""


class MVP(ImageOnlyMethod):
    """One student pass over all patches, the hidden ones replaced; one teacher pass."""

    Config = MVPConfig
    relative_cost = 1.5

    center: Tensor
    center_sum: Tensor
    center_count: Tensor

    def __init__(self, config: MVPConfig, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        self.config = config
        trunk = vit_trunk(self)
        self.grid_size: tuple[int, int] = trunk.patch_embed.grid_size
        self.teacher = FrozenCLIP(
            config.teacher_model,
            config.teacher_pretrained,
            mean=config.image_mean,
            std=config.image_std,
        )
        num_patches, target_dim = self.teacher.shape(model_config.image_size)
        if num_patches != trunk.patch_embed.num_patches:
            raise ConfigError(
                f"The teacher {config.teacher_model} divides an image into {num_patches} patches, "
                f"the student into {trunk.patch_embed.num_patches}. Choose a teacher with the "
                "student's grid."
            )
        self.mask_token = nn.Parameter(torch.zeros(trunk.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(trunk.embed_dim, target_dim)
        self.quantizer: CodewordHead | None = None
        if config.loss == "cross_entropy":
            self.quantizer = CodewordHead(
                input_dim=target_dim,
                hidden_dim=config.codeword_hidden_dim,
                bottleneck_dim=config.codeword_dim,
                num_codewords=config.num_codewords,
            )
            self.teacher_quantizer: CodewordHead = frozen_copy(self.quantizer)
            self.register_buffer("center", torch.zeros(config.num_codewords))
            self.register_buffer("center_sum", torch.zeros(config.num_codewords), persistent=False)
            self.register_buffer("center_count", torch.zeros(()), persistent=False)

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """How well the hidden patches' codes are predicted."""
        trunk = vit_trunk(self)
        mask = draw_mask(
            self.config.mask_kind,
            len(batch.images),
            self.grid_size,
            self.config.mask_ratio,
            batch.generator,
        ).to(batch.images.device)
        patches = embed_patches(trunk, batch.images, replace=(mask.hidden, self.mask_token))
        tokens = patch_tokens(trunk, patches_to_tokens(trunk, patches))  # [B, N, D]
        predicted = self.head(take_tokens(tokens, mask.hidden_ids))  # [B, M, teacher's width]
        target = take_tokens(self.teacher(batch.images), mask.hidden_ids)
        return {}, {"code_loss": self._compare(predicted, target)}

    def _compare(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.quantizer is None:
            return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean()
        with torch.no_grad():
            teacher = self.teacher_quantizer(target)  # [B, M, codewords]
            if self.training:
                self.center_sum += teacher.flatten(0, -2).mean(0, dtype=torch.float32)
                self.center_count += 1
        return codeword_cross_entropy(
            self.quantizer(predicted),
            teacher,
            self.center,
            student_temp=self.config.student_temp,
            teacher_temp=self.config.teacher_temp,
        )

    @torch.no_grad()
    def after_step(self, *, step: int, total_steps: int) -> dict[str, float]:
        """Move the centre and the teacher's copy of the quantizer."""
        if self.quantizer is not None:
            follow(self.teacher_quantizer, self.quantizer, self.config.quantizer_momentum)
            mean = distributed.all_reduce_mean(self.center_sum / self.center_count.clamp(min=1))
            self.center.lerp_(mean, 1 - self.config.center_momentum)
            self.center_sum.zero_()
            self.center_count.zero_()
        return {}
