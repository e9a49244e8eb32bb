"""MaskCLIP (arXiv 2208.12262): contrast, masked self-distillation, masked language modelling.

    L = (L_I + L_T) / 2  +  lambda * L_Dist  +  beta * L_MLM                      (paper, Eq. 8)

The student sees the whole image once for the contrastive loss, and in a second pass only the
visible 25 % of the patches. A one-layer decoder predicts the features of the hidden patches; the
momentum teacher gives them from the whole image. An online quantizer turns both into soft
codewords, compared by cross-entropy. Captions get a second pass with 20 % of the tokens masked, and
a four-layer decoder names the words. (The paper writes the contrastive loss as a sum; as in CLIP's
and SLIP's code it is the mean of both directions here, `contrastive_loss`.)

What the paper leaves unknown is a field with the source of its default.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from pydantic import Field
from torch import Tensor, nn

from maskclip_bench import distributed
from maskclip_bench.data.batch import Batch
from maskclip_bench.modeling.decoders import TextDecoder, VisionDecoder
from maskclip_bench.modeling.distillation_head import CodewordHead
from maskclip_bench.modeling.losses import soft_cross_entropy
from maskclip_bench.modeling.masking import PatchMask, block_mask, gather_tokens, random_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import (
    image_tokens,
    patch_tokens,
    project_image,
    project_text,
    text_hidden,
)
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
)
from maskclip_bench.pretrain.methods.clip_mae import normalized_patches


class MaskCLIPConfig(ContrastiveConfig):
    """Fields of MaskCLIP."""

    distillation_weight: float = Field(default=0.05, ge=0)
    """lambda (paper: 0.05); 0 leaves the image branch out (T6a)."""
    mlm_weight: float = Field(default=0.05, ge=0)
    """beta (paper: 0.05); 0 leaves the text branch out (T6a)."""
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches hidden (paper: 0.75)."""
    mask_kind: Literal["random", "block"] = "random"
    """Which patches are hidden (paper: random)."""
    target: Literal["pixels", "features", "ema_features"] = "ema_features"
    """What the decoder predicts (T9): pixels, the student's own features, or the teacher's."""
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    """cross_entropy over codewords (paper), or mean squared error of layer-normed features (BootMAE)."""
    loss_on: Literal["masked", "all"] = "masked"
    """Patches the distillation loss counts; unknown, masked only in BootMAE, RILS, DetailCLIP."""
    decoder_depth: int = Field(default=1, ge=1)
    """Blocks of the vision decoder (paper: 1)."""
    decoder_dim: int | None = None
    """Its width; unknown, None = the encoder's, as in RILS and DetailCLIP."""
    decoder_num_heads: int | None = None
    """Its heads; unknown, None = the encoder's, as in RILS."""
    num_codewords: int = 8192
    """Size of the online quantizer; unknown, iBOT's and DetailCLIP's."""
    codeword_hidden_dim: int = 2048
    """Width of the quantizer's MLP; unknown, iBOT's."""
    codeword_dim: int = 256
    """Width of a codeword; unknown, iBOT's."""
    student_temp: float = Field(default=0.1, gt=0)
    """Student's softmax temperature; unknown, iBOT's, DetailCLIP's and RILS's."""
    teacher_temp: float = Field(default=0.04, gt=0)
    """Teacher's softmax temperature; unknown, RILS's and iBOT's first."""
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of the centre subtracted from the teacher's logits; unknown, iBOT's and DetailCLIP's."""
    ema_momentum: float = Field(default=0.996, ge=0, le=1)
    """Start of the teacher's cosine schedule, per step; unknown, A-CLIP's and DetailCLIP's."""
    ema_momentum_end: float = Field(default=1.0, ge=0, le=1)
    """Its end; unknown, A-CLIP's and DetailCLIP's."""
    text_mask_ratio: float = Field(default=0.2, gt=0, lt=1)
    """Share of the words masked (paper, Sec. 4.1: 0.2)."""
    text_decoder_depth: int = Field(default=4, ge=0)
    """Blocks of the text decoder (paper: 4; T6d also 0)."""


class MaskCLIP(ContrastiveMethod):
    """One whole and one quarter image pass, one teacher pass, and captions twice in one batch."""

    Config = MaskCLIPConfig
    relative_cost = 2.0

    def __init__(self, config: MaskCLIPConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.config = config
        trunk, text = self.model.visual.trunk, model_config.text
        self.grid_size: tuple[int, int] = trunk.patch_embed.grid_size
        self.patch_size: int = trunk.patch_embed.patch_size[0]
        self.distills = config.distillation_weight > 0
        self.models_language = config.mlm_weight > 0
        self.quantizes = config.loss == "cross_entropy" and config.target != "pixels"
        if self.distills:
            pixels = 3 * self.patch_size**2
            self.vision_decoder = VisionDecoder(
                encoder_dim=trunk.embed_dim,
                num_patches=trunk.patch_embed.num_patches,
                embed_dim=config.decoder_dim or trunk.embed_dim,
                depth=config.decoder_depth,
                num_heads=config.decoder_num_heads or trunk.blocks[0].attn.num_heads,
                output_dim=pixels if config.target == "pixels" else trunk.embed_dim,
            )
        if self.distills and self.quantizes:
            self.distillation_head = CodewordHead(
                input_dim=trunk.embed_dim,
                hidden_dim=config.codeword_hidden_dim,
                bottleneck_dim=config.codeword_dim,
                num_codewords=config.num_codewords,
            )
            self.register_buffer("center", torch.zeros(config.num_codewords))
            self.register_buffer("_center_sum", torch.zeros(config.num_codewords), persistent=False)
            self._center_count = 0
        if self.distills and config.target == "ema_features":
            self.teacher_trunk = _frozen_copy(trunk)
            if self.quantizes:
                self.teacher_head = _frozen_copy(self.distillation_head)
        if self.models_language:
            self.text_mask_embedding = nn.Parameter(torch.zeros(text.width))
            self.text_decoder = TextDecoder(
                width=text.width,
                depth=config.text_decoder_depth,
                num_heads=text.num_heads,
                vocab_size=text.vocab_size,
            )
            nn.init.normal_(self.text_mask_embedding, std=0.02)

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Embeddings of the pair; distillation and MLM losses."""
        tokens = image_tokens(self.model.visual.trunk, batch.images)  # [B, 1 + N, D]
        terms: Terms = {}
        if self.distills:
            loss = self._distillation_loss(batch, tokens)
            terms["distillation_loss"] = self.config.distillation_weight * loss
        if self.models_language:
            hidden, mlm_loss = self._language_loss(batch)
            terms["mlm_loss"] = self.config.mlm_weight * mlm_loss
        else:
            hidden = text_hidden(self.model.text, batch.tokens)
        embeddings = {
            "image_features": project_image(self.model, tokens),
            "text_features": project_text(self.model, batch.tokens, hidden),
        }
        return embeddings, terms

    # The image branch (paper, Sec. 3.3).

    def _distillation_loss(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Predict the features of hidden patches from the visible ones."""
        trunk = self.model.visual.trunk
        mask = self._draw_mask(batch)
        visible = image_tokens(trunk, batch.images, mask)  # [B, 1 + V, D]
        predicted = self.vision_decoder(visible, mask, num_prefix=trunk.num_prefix_tokens)
        if self.config.target == "pixels":
            pixels = normalized_patches(batch.images, self.patch_size)
            return F.mse_loss(predicted.float(), gather_tokens(pixels, mask.hidden_ids))
        target = self._target_features(batch.images, tokens)  # [B, N, D]
        target = gather_tokens(target, mask.hidden_ids)  # [B, M, D]
        if self.config.loss == "mse":
            width = target.shape[-1:]
            return F.mse_loss(
                F.layer_norm(predicted.float(), width), F.layer_norm(target.float(), width)
            )
        student = self.distillation_head(predicted).float() / self.config.student_temp
        return soft_cross_entropy(student, self._codewords(target))

    @torch.no_grad()
    def _target_features(self, images: Tensor, tokens: Tensor) -> Tensor:
        """The teacher's patch features of the whole image; no gradient reaches the teacher."""
        if self.config.target == "ema_features":
            tokens = image_tokens(self.teacher_trunk, images)
        return patch_tokens(self.model.visual.trunk, tokens).detach()

    @torch.no_grad()
    def _codewords(self, target: Tensor) -> Tensor:
        """Soft assignment [B, M, K] of the teacher's features; remembers their mean."""
        head = self.teacher_head if self.config.target == "ema_features" else self.distillation_head
        logits = head(target).float()
        if self.training:
            self._center_sum += logits.flatten(0, -2).mean(0)
            self._center_count += 1
        return ((logits - self.center) / self.config.teacher_temp).softmax(dim=-1)

    def _draw_mask(self, batch: Batch) -> PatchMask:
        count, ratio = len(batch.images), self.config.mask_ratio
        if self.config.mask_kind == "block":
            mask = block_mask(count, self.grid_size, ratio, batch.generator)
        else:
            mask = random_mask(count, math.prod(self.grid_size), ratio, batch.generator)
        return mask.to(batch.images.device)

    # The text branch (paper, Sec. 3.4).

    def _language_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Captions plain and masked in one pass -> plain hidden states [B, L, W], MLM loss."""
        captions = batch.tokens
        chosen = choose_words(captions, self.config.text_mask_ratio, batch.generator)  # [B, L]
        embedded = self.model.text.token_embedding(captions)
        masked = torch.where(
            chosen.unsqueeze(-1), self.text_mask_embedding.to(embedded.dtype), embedded
        )
        both = text_hidden(
            self.model.text, captions.repeat(2, 1), embedded=torch.cat([embedded, masked])
        )
        plain, hidden = both.chunk(2)
        is_word = torch.arange(captions.shape[1], device=captions.device) <= captions.argmax(
            dim=1, keepdim=True
        )
        logits = self.text_decoder(hidden, is_word, chosen)  # [K, vocabulary]
        return plain, F.cross_entropy(logits.float(), captions[chosen])

    @torch.no_grad()
    def after_step(self, *, step: int, total_steps: int) -> dict[str, float]:
        """Move the centre and the teacher."""
        values = super().after_step(step=step, total_steps=total_steps)
        if self.distills and self.quantizes and self._center_count:
            mean = distributed.all_reduce_mean(self._center_sum / self._center_count)
            self.center.lerp_(mean, 1 - self.config.center_momentum)
            self._center_sum.zero_()
            self._center_count = 0
        if self.distills and self.config.target == "ema_features":
            momentum = cosine_momentum(
                self.config.ema_momentum, self.config.ema_momentum_end, step / total_steps
            )
            _follow(self.teacher_trunk, self.model.visual.trunk, momentum)
            if self.quantizes:
                _follow(self.teacher_head, self.distillation_head, momentum)
            values["ema_momentum"] = momentum
        return values

    def teacher_model(self) -> CustomTextCLIP | None:
        """The student with the teacher's trunk."""
        if not (self.distills and self.config.target == "ema_features"):
            return None
        model = copy.deepcopy(self.model)
        model.visual.trunk.load_state_dict(self.teacher_trunk.state_dict())
        return model


def choose_words(captions: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Words to mask, bool [B, L]: `ratio` of them, at least one a caption; never start, end, padding.

    Args:
        captions: Int64 [B, L]; starts with the start token, the end token is the largest id.
        ratio: Share of the words of each caption, rounded.
        generator: CPU generator.
    """
    end = captions.argmax(dim=1, keepdim=True).cpu()  # [B, 1]
    position = torch.arange(captions.shape[1])
    is_word = (position > 0) & (position < end)  # [B, L]
    noise = torch.rand(captions.shape, generator=generator).masked_fill(~is_word, 2.0)
    count = ((end - 1) * ratio).round().clamp(min=1)
    order = noise.argsort(dim=1).argsort(dim=1)
    return ((order < count) & is_word).to(captions.device)


def cosine_momentum(start: float, end: float, progress: float) -> float:
    """Momentum of the teacher after `progress` (0 to 1) of the run (BYOL, Sec. 3.3)."""
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


def _frozen_copy(module: Any) -> Any:
    copied = copy.deepcopy(module)
    return copied.requires_grad_(False).eval()


def _follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Teacher = momentum * teacher + (1 - momentum) * student, in one fused call."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
