"""MaskCLIP (arXiv 2208.12262): contrast, masked self-distillation, masked language modelling.

    L = L_I + L_T  +  lambda * L_Dist  +  beta * L_MLM                            (paper, Eq. 8)

The student sees the whole image once for the contrastive loss, and in a second pass only the
visible 25 % of the patches. A one-layer decoder predicts the features of the masked patches; the
momentum teacher gives them from the whole image. An online quantizer turns both into soft
codewords, compared by cross-entropy. Captions get a second pass with 20 % of the words masked, and
a four-layer decoder names the words.

        image --+-- whole ------ student ------ class token ---------- L_I, L_T -- captions
                |                                                                      |
                +-- visible ---- student -- decoder -- quantizer --+                   |
                |                                                  | L_Dist            |
                +-- whole ------ teacher ------------- quantizer --+                   |
                                                                                       |
                        masked captions -- text encoder -- decoder ------ L_MLM -------+

| in the paper                           | here                                          |
| -------------------------------------- | --------------------------------------------- |
| L, Eq. 8                               | `MaskCLIP.equation_8`                         |
| L_I, L_T: contrast, Sec. 3.1           | `ContrastiveMethod.image_text_losses`         |
| L_Dist: masked self-distillation, 3.3  | `MaskCLIP.distill`                            |
| mean teacher (EMA)                     | `teacher_trunk`, `MaskCLIP.update`            |
| vision decoder                         | `vision_decoder`, `modeling.decoders`         |
| online quantizer, soft codewords       | `quantizer`, `parts.online_quantizer`         |
| L_MLM: masked language modelling, 3.4  | `language`, `parts.masked_language`           |
| random masking of patches              | `MaskCLIP.draw`, `modeling.masking`           |

What the paper leaves unknown is a field with the source of its default.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from open_clip.model import CustomTextCLIP
from pydantic import Field, model_validator
from torch import Tensor, nn

from maskclip_bench.data.batch import Batch, Draw
from maskclip_bench.modeling.decoders import decoder_targets, pixel_patches
from maskclip_bench.modeling.masking import MaskKind, PatchMask, draw_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.packing import ChosenWords, PackedText
from maskclip_bench.modeling.towers import (
    embed_patches,
    patch_tokens,
    patches_to_tokens,
    pooled_image,
    pooled_patches,
    project_image,
    project_text,
)
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
    Values,
    vit_of,
)
from maskclip_bench.pretrain.methods.parts.masked_language import (
    WORD_LOSS_SUMS,
    MaskedLanguage,
    MaskedLanguageConfig,
    mean_over_words,
)
from maskclip_bench.pretrain.methods.parts.online_quantizer import OnlineQuantizer, QuantizerConfig
from maskclip_bench.pretrain.methods.parts.reconstruction import (
    VisionDecoderConfig,
    feature_loss,
    num_pixels,
    pixel_loss,
    vision_decoder,
)
from maskclip_bench.pretrain.methods.teacher import (
    EMAConfig,
    EMASchedule,
    FrozenCLIP,
    FrozenTeacherConfig,
    StartConfig,
    TextAndProjections,
    ema_update,
    frozen_copy,
    load_weights,
)

Loss = Tensor | None
"""A term of Eq. 8, or None if it is computed elsewhere or left out."""


class MaskCLIPConfig(
    ContrastiveConfig,
    VisionDecoderConfig,
    EMAConfig,
    QuantizerConfig,
    MaskedLanguageConfig,
    FrozenTeacherConfig,
    StartConfig,
):
    """Fields of MaskCLIP; with the defaults it is the paper's, as far as that is known."""

    contrastive_weight: float = Field(default=2.0, gt=0)
    """Of the mean of L_I and L_T; 2 is their sum (paper, Eq. 8), 1 is CLIP's and SLIP's code."""
    distillation_weight: float = Field(default=0.05, ge=0)
    """lambda (paper: 0.05; T6e); 0 leaves the image branch out (T6a)."""
    mlm_weight: float = Field(default=0.05, ge=0)
    """beta (paper: 0.05; T6f); 0 leaves the text branch out (T6a)."""

    target: Literal["pixels", "features", "ema_features"] = "ema_features"
    """What the decoder predicts (T9): pixels; the student's own features of the whole image, by the
    student's own quantizer, detached; or the teacher's (paper)."""
    teacher: Literal["momentum", "momentum_head", "open_clip"] = "momentum"
    """Whose features `ema_features` are: a momentum copy of the student (paper); the student's own,
    with a momentum copy of the quantizer's head alone and no teacher pass (TIPSv2, arXiv
    2604.12012); or a frozen model of open_clip, `teacher_model`."""
    full_ema: bool = Field(default=False, json_schema_extra={"neutral": False})
    """Whether text tower, projections and temperature have a momentum copy too, as in A-CLIP and
    DetailCLIP, which evaluate it. The losses need the trunk's alone; but only with this is the
    `teacher/` that a run leaves a model of one age, and not a trunk with the student's text."""
    target_norm: bool = True
    """Whether target features are those after the final norm of the trunk that gives them; unknown,
    after it as in iBOT (BootMAE: before it)."""
    mask_kind: MaskKind = "random"
    """Which patches are masked (paper: random); block is BEiT's."""
    decoder_positions: Literal["sine", "learned"] = "sine"
    """The vision decoder's positions; unknown, fixed sine and cosine in MAE, RILS, DetailCLIP."""
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    """cross_entropy over codewords (paper), or mean squared error of features, both layer-normed
    without parameters (BootMAE). Pixels always use the latter, as in MAE."""
    loss_on: Literal["masked", "all"] = "masked"
    """Patches the distillation loss counts; unknown, masked only in BootMAE, RILS, DetailCLIP."""

    @model_validator(mode="after")
    def _parts_fit(self) -> MaskCLIPConfig:
        if (self.teacher == "open_clip") != (self.teacher_model is not None):
            raise ValueError("teacher: open_clip and teacher_model (a name) need each other")
        if self.teacher != "momentum" and self.target != "ema_features":
            raise ValueError(f"target {self.target} uses no teacher; set target: ema_features")
        has_copy = self.target == "ema_features" and self.distillation_weight > 0
        if self.full_ema and not (has_copy and self.teacher == "momentum"):
            raise ValueError(
                "full_ema goes with a momentum teacher: set teacher: momentum, target: "
                "ema_features and a distillation_weight above 0"
            )
        if self.teacher == "momentum_head" and self.loss == "mse":
            raise ValueError("teacher: momentum_head is of the quantizer; set loss: cross_entropy")
        return self


class MaskCLIP(ContrastiveMethod):
    """One whole and one quarter image pass, one teacher pass, and captions twice in one batch."""

    Config = MaskCLIPConfig
    linear_embeddings: ClassVar[Mapping[str, str]] = {WORD_LOSS_SUMS: "mlm_loss"}
    relative_cost = 2.0

    @classmethod
    def cost_of(cls, config: MaskCLIPConfig) -> float:
        """CLIP's step and that of each part, shared out as the parts' operations are."""
        image = {"pixels": 0.4, "features": 0.5, "ema_features": 0.65}[config.target]
        return 1.0 + image * (config.distillation_weight > 0) + 0.35 * (config.mlm_weight > 0)

    def __init__(self, config: MaskCLIPConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.config = config
        self.ema = EMASchedule(config)
        self.own_features = config.target == "features" or config.teacher == "momentum_head"
        if config.start_from is not None:
            load_weights(self.model, config.start_from)
        self.teacher_trunk: nn.Module | None = None
        self.teacher_rest = TextAndProjections(self.model) if config.full_ema else None
        self.frozen_teacher: FrozenCLIP | None = None
        self.quantizer: OnlineQuantizer | None = None
        if config.distillation_weight > 0:
            self._build_image_branch(config, model_config)
        self.language: MaskedLanguage | None = None
        if config.mlm_weight > 0:
            self.language = MaskedLanguage(model_config.text, config)

    def _build_image_branch(self, config: MaskCLIPConfig, model_config: ModelConfig) -> None:
        vit = vit_of(self)
        width = vit.embed_dim
        if config.target == "pixels":
            width = num_pixels(vit)
        elif config.teacher == "open_clip":
            teacher = self.frozen_teacher = FrozenCLIP(
                str(config.teacher_model),
                config.teacher_pretrained,
                mean=config.image_mean,
                std=config.image_std,
                norm=config.target_norm,
            )
            width = teacher.width(model_config.image_size, num_patches=vit.num_patches)
        elif not self.own_features:
            self.teacher_trunk = frozen_copy(vit.trunk)
        sine = config.decoder_positions == "sine"
        self.vision_decoder = vision_decoder(vit, config, output_dim=width, fixed_positions=sine)
        if config.loss == "cross_entropy" and config.target != "pixels":
            self.quantizer = OnlineQuantizer(width, config)

    # --- Eq. 8 --------------------------------------------------------------------------------

    def equation_8(
        self, *, l_i: Loss = None, l_t: Loss = None, l_dist: Loss = None, l_mlm: Loss = None
    ) -> Terms:
        """L = L_I + L_T + lambda * L_Dist + beta * L_MLM: the terms that are given, weighted.

        They come from two places: `contrast` has the samples of the global batch before it, which
        L_I and L_T compare, and `encode` those of a micro-batch, over which L_Dist is a mean.
        """
        config, terms = self.config, {}
        if l_i is not None and l_t is not None:
            terms["contrastive_loss"] = config.contrastive_weight * ((l_i + l_t) / 2)
        if l_dist is not None:
            terms["distillation_loss"] = config.distillation_weight * l_dist
        if l_mlm is not None:
            terms["mlm_loss"] = config.mlm_weight * l_mlm
        return terms

    def contrast(self, embeddings: Embeddings) -> Terms:
        """L_I + L_T; and L_MLM where it is a mean over all masked words."""
        l_i, l_t = self.image_text_losses(embeddings)
        l_mlm = mean_over_words(embeddings) if "word_counts" in embeddings else None
        return self.equation_8(l_i=l_i, l_t=l_t, l_mlm=l_mlm)

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Embeddings of the pair; L_Dist and, as a mean over captions, L_MLM."""
        l_dist, trunk, drawn = None, vit_of(self).trunk, self.drawn(batch)
        patches = embed_patches(trunk, batch.images)  # [B, N, D], shared by both passes
        if self.config.distillation_weight > 0:
            pooled, l_dist = self.distill(batch, patches, drawn["mask"])
        else:
            pooled = pooled_patches(trunk, patches)
        texts, l_mlm = self.read(batch, drawn)
        embeddings = {"image_features": project_image(self.model, pooled), **texts}
        return embeddings, self.equation_8(l_dist=l_dist, l_mlm=l_mlm)

    def embed(self, batch: Batch) -> Embeddings:
        """The embeddings of `encode`: no teacher, no second pass over image or caption."""
        drawn, model = self.drawn(batch), self.model
        pooled = pooled_image(vit_of(self).trunk, batch.images)
        text = PackedText(model.text, batch.tokens, layout=drawn["layout"])
        embeddings = {
            "image_features": project_image(model, pooled),
            "text_features": project_text(model, text.at_end()),
        }
        if self.language is not None:
            embeddings |= self.language.before_loss(drawn["words"], text)
        return embeddings

    def draw(self, draw: Draw) -> dict[str, Any]:
        """The patches to mask, then the words."""
        config, drawn = self.config, super().draw(draw)
        if config.distillation_weight > 0:
            grid, ratio = vit_of(self).grid_size, config.mask_ratio
            mask = draw_mask(config.mask_kind, draw.num_images, grid, ratio, draw.generator)
            drawn["mask"] = mask
        if self.language is not None:
            drawn["words"] = self.language.choose(drawn["layout"], draw)
        return drawn

    # --- masked language modelling (paper, Sec. 3.4) --------------------------------------------

    def read(self, batch: Batch, drawn: Mapping[str, Any]) -> tuple[Embeddings, Tensor | None]:
        """Embeddings of the captions [B, J], and L_MLM or what it is made of."""
        text = PackedText(self.model.text, batch.tokens, layout=drawn["layout"])
        if self.language is None:
            return {"text_features": project_text(self.model, text.at_end())}, None
        chosen: ChosenWords = drawn["words"]
        masked = text.masked(chosen, self.language.mask_token)  # [K, W]
        eot_states, hidden = text.at_end_and_everywhere(masked)
        l_mlm, parts = self.language.loss(hidden, chosen, text)
        return {"text_features": project_text(self.model, eot_states), **parts}, l_mlm

    # --- masked self-distillation (paper, Sec. 3.3) --------------------------------------------

    def distill(self, batch: Batch, patches: Tensor, mask: PatchMask) -> tuple[Tensor, Tensor]:
        """Embedded patches [B, N, D] -> the pooled whole image [B, D], and L_Dist."""
        vit, config = vit_of(self), self.config
        pooled, target = self.see_whole_image(batch.images, patches)
        visible = patches_to_tokens(vit.trunk, patches, mask)  # [B, P + V, D]
        on_all = config.loss_on == "all"
        predicted = self.vision_decoder(
            visible, mask, num_prefix=vit.num_prefix_tokens, predict_all=on_all
        )  # [B, M, target width]
        return pooled, self.compare(predicted, decoder_targets(target, mask, predict_all=on_all))

    def see_whole_image(self, images: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled student [B, D], and the target of every patch [B, N, target width]."""
        vit = vit_of(self)
        if self.own_features:
            tokens = patches_to_tokens(vit.trunk, patches, norm=False)  # [B, P + N, D]
            normed = vit.norm(tokens)
            target = normed if self.config.target_norm else tokens
            return vit.trunk.forward_head(normed), patch_tokens(vit.trunk, target).detach()
        pooled = pooled_patches(vit.trunk, patches)
        if self.config.target == "pixels":
            return pooled, pixel_patches(images, vit.patch_size[0])
        return pooled, self._teacher_features(images)

    @torch.no_grad()
    def _teacher_features(self, images: Tensor) -> Tensor:
        """The teacher's patch features of the whole image, [B, N, D]; no gradient reaches it."""
        if self.frozen_teacher is not None:
            return self.frozen_teacher(images)
        assert self.teacher_trunk is not None
        patches = embed_patches(self.teacher_trunk, images)
        tokens = patches_to_tokens(self.teacher_trunk, patches, norm=self.config.target_norm)
        return patch_tokens(self.teacher_trunk, tokens)

    def compare(self, predicted: Tensor, target: Tensor) -> Tensor:
        """L_Dist of predictions and targets, both [B, M, target width]."""
        if self.config.target == "pixels":
            return pixel_loss(predicted, target)
        if self.quantizer is None:
            return feature_loss(predicted, target)
        return self.quantizer.loss(predicted, target)

    # --- the teacher ---------------------------------------------------------------------------

    def student_was_replaced(self) -> None:
        """The momentum copies start as the student."""
        if self.teacher_trunk is not None:
            ema_update(self.teacher_trunk, self.model.visual.trunk, 0.0)
        if self.teacher_rest is not None:
            self.teacher_rest.follow(self.model, 0.0)

    def update(self, *, step: int, total_steps: int) -> Values:
        """Move the centre and the teacher."""
        values = super().update(step=step, total_steps=total_steps)
        momentum = self.ema.momentum(step, total_steps)
        if self.config.target == "features":
            momentum = 0.0  # no teacher: targets come from the student's own head
        if self.quantizer is not None:
            values |= self.quantizer.update(momentum, progress=step / total_steps)
        if self.teacher_trunk is not None:
            ema_update(self.teacher_trunk, self.model.visual.trunk, momentum)
        if self.teacher_rest is not None:
            self.teacher_rest.follow(self.model, momentum)
        if momentum and (self.quantizer is not None or self.teacher_trunk is not None):
            values["ema_momentum"] = momentum
            values["teacher_age_steps"] = self.ema.mean_age(step, total_steps)
        return values

    def observe(
        self, values: Mapping[str, float], *, step: int, total_steps: int, lr_share: float = 1.0
    ) -> None:
        """A warning if the quantizer gives no signal."""
        if self.quantizer is not None:
            self.quantizer.warn(values, step=step, total_steps=total_steps, lr_share=lr_share)

    def train(self, mode: bool = True) -> MaskCLIP:
        """The teacher stays in evaluation mode: no stochastic depth in it."""
        super().train(mode)
        if self.teacher_trunk is not None:
            self.teacher_trunk.eval()
        return self

    def teacher_model(self) -> CustomTextCLIP | None:
        """The student with the teacher's trunk; with `full_ema`, all of it is the teacher's."""
        if self.teacher_trunk is None:
            return None
        model = copy.deepcopy(self.model)
        model.visual.trunk.load_state_dict(self.teacher_trunk.state_dict())
        if self.teacher_rest is not None:
            self.teacher_rest.put_into(model)
        return model
