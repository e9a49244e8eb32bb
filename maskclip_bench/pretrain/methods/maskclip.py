"""MaskCLIP (arXiv 2208.12262): contrast, masked self-distillation, masked language modelling.

    L = L_I + L_T  +  lambda * L_Dist  +  beta * L_MLM                            (paper, Eq. 8)

The student sees the whole image once for the contrastive loss, and in a second pass only the
visible 25 % of the patches. A one-layer decoder predicts the features of the hidden patches; the
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

What the paper leaves unknown is a field with the source of its default.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from pydantic import Field, model_validator
from torch import Tensor, nn

from maskclip_bench import distributed
from maskclip_bench.data.batch import Batch
from maskclip_bench.data.config import IMAGENET_MEAN, IMAGENET_STD
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.blocks import PackedLayout
from maskclip_bench.modeling.decoders import (
    TextDecoder,
    VisionDecoder,
    decoder_targets,
    normalized_patches,
    pixel_patches,
)
from maskclip_bench.modeling.losses import per_caption_cross_entropy
from maskclip_bench.modeling.masking import MaskKind, choose_words, draw_mask
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.modeling.towers import (
    embed_patches,
    embed_words,
    patch_tokens,
    patches_to_tokens,
    pooled_patches,
    position_embedding,
    project_ends,
    text_ends,
    text_ends_and_hidden,
)
from maskclip_bench.pretrain.methods.base import (
    ContrastiveConfig,
    ContrastiveMethod,
    Embeddings,
    Terms,
    packed_layout,
    vit_trunk,
)
from maskclip_bench.pretrain.methods.parts.online_quantizer import (
    CodewordHead,
    codeword_cross_entropy,
)
from maskclip_bench.pretrain.methods.teacher import (
    FrozenCLIP,
    cosine_momentum,
    follow,
    frozen_copy,
    load_weights,
)

Triple = tuple[float, float, float]


class MaskCLIPConfig(ContrastiveConfig):
    """Fields of MaskCLIP; with the defaults it is the paper's, as far as that is known."""

    contrastive_weight: float = Field(default=2.0, gt=0)
    """Of the mean of L_I and L_T; 2 is their sum (paper, Eq. 8), 1 is CLIP's and SLIP's code."""
    distillation_weight: float = Field(default=0.05, ge=0)
    """lambda (paper: 0.05; T6e); 0 leaves the image branch out (T6a)."""
    mlm_weight: float = Field(default=0.05, ge=0)
    """beta (paper: 0.05; T6f); 0 leaves the text branch out (T6a)."""

    stages: Literal["joint", "two_stage"] = "joint"
    """joint: all losses from the start. two_stage: the student starts from a finished CLIP model,
    `start_from`."""
    start_from: Path | None = None
    """The `model` folder of a finished run, for `stages: two_stage`; a relative path is below the
    workspace."""

    target: Literal["pixels", "features", "ema_features"] = "ema_features"
    """What the decoder predicts (T9): pixels; the student's own features of the whole image,
    detached; or the teacher's (paper)."""
    teacher: Literal["momentum", "open_clip"] = "momentum"
    """Whose features `ema_features` are: a momentum copy of the student (paper), or a frozen model
    of open_clip, `teacher_model`."""
    teacher_model: str | None = None
    """Name of the frozen teacher in open_clip (`ViT-B-16`, `hf-hub:...`, `local-dir:...`)."""
    teacher_pretrained: str | None = None
    """Tag of the frozen teacher's weights (`openai`, `laion2b_s34b_b88k`)."""
    image_mean: Triple = IMAGENET_MEAN
    """Filled in by a recipe with its `data.augment.mean`; images are re-normalized for the frozen
    teacher."""
    image_std: Triple = IMAGENET_STD
    """Filled in by a recipe with its `data.augment.std`."""
    target_norm: bool = True
    """Whether target features are those after the final norm of the trunk that gives them; unknown,
    after it as in iBOT (BootMAE: before it)."""
    ema_momentum: float = Field(default=0.996, ge=0, le=1)
    """Start of the cosine schedule by which the teacher and its copy of the quantizer follow the
    student, per step; unknown, A-CLIP's and DetailCLIP's."""
    ema_momentum_end: float = Field(default=1.0, ge=0, le=1)
    """Its end; unknown, A-CLIP's and DetailCLIP's."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches hidden (paper: 0.75)."""
    mask_kind: MaskKind = "random"
    """Which patches are hidden (paper: random); block is BEiT's."""
    decoder_depth: int = Field(default=1, ge=1)
    """Blocks of the vision decoder (paper: 1)."""
    decoder_dim: int | None = None
    """Its width; unknown, None = the encoder's, as in RILS and DetailCLIP."""
    decoder_num_heads: int | None = None
    """Its heads; unknown, None = the encoder's, as in RILS."""
    decoder_positions: Literal["sine", "learned"] = "sine"
    """Its positions; unknown, fixed sine and cosine in MAE, RILS and DetailCLIP."""

    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    """cross_entropy over codewords (paper), or mean squared error of features, both layer-normed
    without parameters (BootMAE). Pixels always use the latter, as in MAE."""
    loss_on: Literal["masked", "all"] = "masked"
    """Patches the distillation loss counts; unknown, masked only in BootMAE, RILS, DetailCLIP."""
    num_codewords: int = Field(default=8192, ge=2)
    """Size of the online quantizer; unknown, iBOT's and DetailCLIP's."""
    codeword_hidden_dim: int = 2048
    """Width of the quantizer's MLP; unknown, iBOT's and DetailCLIP's."""
    codeword_dim: int = 256
    """Width of a codeword; unknown, iBOT's and DetailCLIP's."""
    codeword_depth: int = Field(default=3, ge=1)
    """Linear layers of the quantizer's MLP; unknown, iBOT's and DetailCLIP's."""
    student_temp: float = Field(default=0.1, gt=0)
    """Student's softmax temperature; unknown, iBOT's, DetailCLIP's and RILS's."""
    teacher_temp: float = Field(default=0.04, gt=0)
    """Teacher's softmax temperature; unknown, RILS's and iBOT's first."""
    center_momentum: float = Field(default=0.9, ge=0, le=1)
    """Of the centre subtracted from the teacher's logits; unknown, iBOT's and DetailCLIP's. With 1
    nothing is subtracted."""

    text_mask_ratio: float = Field(default=0.2, gt=0, lt=1)
    """Share of the words masked (paper, Sec. 4.1: 0.2)."""
    text_replacement: Literal["bert", "mask"] = "bert"
    """What a masked word becomes: BERT's 80 % mask, 10 % another word, 10 % itself; or always the
    mask. Unknown beyond "BERT-style"."""
    text_decoder_depth: int = Field(default=4, ge=0)
    """Blocks of the text decoder (paper: 4; T6d also 0)."""
    vocabulary_head: Literal["tied", "own"] = "tied"
    """Whether words are named by the token embedding (BERT) or by a matrix of its own; unknown."""

    @model_validator(mode="after")
    def _parts_fit(self) -> MaskCLIPConfig:
        if (self.stages == "two_stage") != (self.start_from is not None):
            raise ValueError("stages: two_stage and start_from (a model folder) need each other")
        if (self.teacher == "open_clip") != (self.teacher_model is not None):
            raise ValueError("teacher: open_clip and teacher_model (a name) need each other")
        if self.teacher == "open_clip" and self.target != "ema_features":
            raise ValueError(f"target {self.target} uses no teacher; set target: ema_features")
        return self


class MaskCLIP(ContrastiveMethod):
    """One whole and one quarter image pass, one teacher pass, and captions twice in one batch."""

    Config = MaskCLIPConfig
    relative_cost = 2.0

    center: Tensor
    center_sum: Tensor
    center_count: Tensor

    def __init__(self, config: MaskCLIPConfig, model_config: ModelConfig) -> None:
        super().__init__(config, model_config)
        self.config = config
        self.distills = config.distillation_weight > 0
        self.models_language = config.mlm_weight > 0
        if config.start_from is not None:
            load_weights(self.model, config.start_from)
        self.teacher_trunk: nn.Module | None = None
        self.frozen_teacher: FrozenCLIP | None = None
        if self.distills:
            self._build_image_branch(config, model_config)
        if self.models_language:
            self._build_text_branch(config, model_config)

    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Embeddings of the pair; distillation and MLM losses."""
        trunk = vit_trunk(self)
        patches = embed_patches(trunk, batch.images)  # [B, N, D], shared by both passes
        terms: Terms = {}
        if not self.distills:
            pooled = pooled_patches(trunk, patches)
        else:
            pooled, loss = self._distill(batch, patches)
            terms["distillation_loss"] = self.config.distillation_weight * loss
        layout = packed_layout(batch)
        words = layout.pack(batch.tokens)  # [K]
        if not self.models_language:
            embedded = embed_words(self.model.text, words, layout)
            ends = text_ends(self.model.text, embedded, layout)
        else:
            ends, mlm_loss = self._model_language(batch, words, layout)
            terms["mlm_loss"] = self.config.mlm_weight * mlm_loss
        embeddings = {
            "image_features": F.normalize(self.model.visual.head(pooled), dim=-1),
            "text_features": project_ends(self.model, ends),
        }
        return embeddings, terms

    def contrast(self, embeddings: Embeddings) -> Terms:
        """L_I + L_T."""
        (name, loss), *_ = super().contrast(embeddings).items()
        return {name: self.config.contrastive_weight * loss}

    # The image branch (paper, Sec. 3.3).

    def _build_image_branch(self, config: MaskCLIPConfig, model_config: ModelConfig) -> None:
        trunk = vit_trunk(self)
        self.grid_size: tuple[int, int] = trunk.patch_embed.grid_size
        self.patch_size: int = trunk.patch_embed.patch_size[0]
        target_dim: int = trunk.embed_dim
        if config.target == "pixels":
            target_dim = 3 * self.patch_size**2
        elif config.teacher == "open_clip":
            self.frozen_teacher = FrozenCLIP(
                str(config.teacher_model),
                config.teacher_pretrained,
                mean=config.image_mean,
                std=config.image_std,
                norm=config.target_norm,
            )
            num_patches, target_dim = self.frozen_teacher.shape(model_config.image_size)
            if num_patches != trunk.patch_embed.num_patches:
                raise ConfigError(
                    f"The teacher {config.teacher_model} divides an image into {num_patches} "
                    f"patches, the student into {trunk.patch_embed.num_patches}. Choose a teacher "
                    "with the student's grid."
                )
        elif config.target == "ema_features":
            self.teacher_trunk = frozen_copy(trunk)
        self.vision_decoder = VisionDecoder(
            encoder_dim=trunk.embed_dim,
            grid_size=self.grid_size,
            embed_dim=config.decoder_dim or trunk.embed_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads or trunk.blocks[0].attn.num_heads,
            output_dim=target_dim,
            fixed_positions=config.decoder_positions == "sine",
        )
        self.quantizer: CodewordHead | None = None
        self.teacher_quantizer: CodewordHead | None = None
        if config.loss == "cross_entropy" and config.target != "pixels":
            self.quantizer = CodewordHead(
                input_dim=target_dim,
                hidden_dim=config.codeword_hidden_dim,
                bottleneck_dim=config.codeword_dim,
                num_codewords=config.num_codewords,
                depth=config.codeword_depth,
            )
            self.register_buffer("center", torch.zeros(config.num_codewords))
            self.register_buffer("center_sum", torch.zeros(config.num_codewords), persistent=False)
            self.register_buffer("center_count", torch.zeros(()), persistent=False)
            self.teacher_quantizer = frozen_copy(self.quantizer)

    def _distill(self, batch: Batch, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded patches [B, N, D] -> pooled whole image [B, D], distillation loss."""
        trunk = vit_trunk(self)
        pooled, target = self._see_whole_image(batch.images, patches)
        mask = draw_mask(
            self.config.mask_kind,
            len(patches),
            self.grid_size,
            self.config.mask_ratio,
            batch.generator,
        ).to(patches.device)
        visible = patches_to_tokens(trunk, patches, mask)  # [B, 1 + V, D]
        on_all = self.config.loss_on == "all"
        predicted = self.vision_decoder(
            visible, mask, num_prefix=trunk.num_prefix_tokens, predict_all=on_all
        )  # [B, M, target width]
        target = decoder_targets(target, mask, predict_all=on_all)
        return pooled, self._compare(predicted, target)

    def _see_whole_image(self, images: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled student output [B, D], and the target of every patch [B, N, target width]."""
        trunk = vit_trunk(self)
        if self.config.target == "features":
            tokens = patches_to_tokens(trunk, patches, norm=False)  # [B, 1 + N, D]
            normed = trunk.norm(tokens)
            target = normed if self.config.target_norm else tokens
            return trunk.forward_head(normed), patch_tokens(trunk, target).detach()
        pooled = pooled_patches(trunk, patches)
        if self.config.target == "pixels":
            return pooled, pixel_patches(images, self.patch_size)
        return pooled, self._teacher_features(images)

    @torch.no_grad()
    def _teacher_features(self, images: Tensor) -> Tensor:
        """The teacher's patch features of the whole image, [B, N, D]; no gradient reaches it."""
        if self.frozen_teacher is not None:
            return self.frozen_teacher(images)
        teacher = self.teacher_trunk
        assert teacher is not None
        patches = embed_patches(teacher, images)
        tokens = patches_to_tokens(teacher, patches, norm=self.config.target_norm)
        return patch_tokens(teacher, tokens)

    def _compare(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Loss between predictions and targets, both [B, M, target width]."""
        if self.config.target == "pixels":
            return F.mse_loss(predicted.float(), normalized_patches(target))
        if self.quantizer is None:
            width = target.shape[-1:]
            return F.mse_loss(
                F.layer_norm(predicted.float(), width), F.layer_norm(target.float(), width)
            )
        with torch.no_grad():
            assert self.teacher_quantizer is not None
            directions = self.teacher_quantizer.directions(target)
            teacher = self.teacher_quantizer.similarities(directions)  # [B, M, codewords]
            if self.training:  # similarities are linear: their mean is that of the mean direction
                mean = directions.flatten(0, -2).mean(0, dtype=torch.float32)
                with torch.autocast(mean.device.type, enabled=False):
                    self.center_sum += self.teacher_quantizer.similarities(mean)
                self.center_count += 1
        return codeword_cross_entropy(
            self.quantizer(predicted),
            teacher,
            self.center,
            student_temp=self.config.student_temp,
            teacher_temp=self.config.teacher_temp,
        )

    # The text branch (paper, Sec. 3.4).

    def _build_text_branch(self, config: MaskCLIPConfig, model_config: ModelConfig) -> None:
        text = model_config.text
        self.text_mask_token = nn.Parameter(torch.zeros(text.width))
        nn.init.normal_(self.text_mask_token, std=0.02)
        self.text_decoder = TextDecoder(
            width=text.width, depth=config.text_decoder_depth, num_heads=text.num_heads
        )
        self.vocabulary_bias = nn.Parameter(torch.zeros(text.vocab_size))
        self.vocabulary: nn.Parameter | None = None
        if config.vocabulary_head == "own":
            self.vocabulary = nn.Parameter(torch.empty(text.vocab_size, text.width))
            nn.init.normal_(self.vocabulary, std=0.02)

    def _model_language(
        self, batch: Batch, words: Tensor, layout: PackedLayout
    ) -> tuple[Tensor, Tensor]:
        """Captions plain and masked in one pass -> ends of the plain [T, W], MLM loss."""
        chosen = choose_words(batch.captions, self.config.text_mask_ratio, batch.generator)
        chosen_ids = PackedLayout.of(batch.captions).pack(chosen).nonzero().squeeze(1)
        chosen_ids = chosen_ids.to(words.device, non_blocking=True)  # places among the K words
        plain, masked = self._embed_plain_and_masked(batch, words, layout, chosen_ids)
        ends, hidden = text_ends_and_hidden(self.model.text, plain, masked, layout)
        decoded = self.text_decoder(hidden, layout).index_select(0, chosen_ids)
        vocabulary = self.model.text.token_embedding.weight
        if self.vocabulary is not None:
            vocabulary = self.vocabulary
        logits = F.linear(decoded, vocabulary, self.vocabulary_bias)  # [chosen, vocabulary]
        text_of = layout.slots.index_select(0, chosen_ids) // layout.length
        loss = per_caption_cross_entropy(
            logits, words.index_select(0, chosen_ids), text_of, num_captions=layout.num_texts
        )
        return ends, loss

    def _embed_plain_and_masked(
        self, batch: Batch, words: Tensor, layout: PackedLayout, chosen_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Packed embeddings [K, W] of the captions, as they are and with chosen words replaced."""
        text = self.model.text
        positions = position_embedding(text, layout)  # [K, W]
        chosen_positions = positions.index_select(0, chosen_ids)
        masked = chosen_positions + self.text_mask_token
        if self.config.text_replacement == "mask":
            plain = embed_words(text, words, layout)
        else:
            draw = torch.rand(2, *batch.tokens.shape, generator=batch.generator)
            draw = draw.flatten(1).to(words.device, non_blocking=True)
            fate, other = draw.index_select(1, layout.slots.index_select(0, chosen_ids))
            # Any word but start and end, which are the two largest ids.
            others = (other * (text.vocab_size - 2)).long()
            # One lookup for both: the gradient of each would be as large as the vocabulary's table.
            embedded = text.token_embedding(torch.cat([words, others]))
            plain = embedded[: len(words)] + positions
            other = embedded[len(words) :] + chosen_positions
            own = plain.index_select(0, chosen_ids)
            fate = fate.unsqueeze(1)
            masked = torch.where(fate < 0.8, masked, torch.where(fate < 0.9, other, own))
        return plain, plain.index_copy(0, chosen_ids, masked.to(plain.dtype))

    # The teacher (paper, Sec. 3.3).

    @torch.no_grad()
    def after_step(self, *, step: int, total_steps: int) -> dict[str, float]:
        """Move the centre and the teacher."""
        values = super().after_step(step=step, total_steps=total_steps)
        if not self.distills:
            return values
        if self.quantizer is not None:
            mean = distributed.all_reduce_mean(self.center_sum / self.center_count.clamp(min=1))
            self.center.lerp_(mean, 1 - self.config.center_momentum)
            self.center_sum.zero_()
            self.center_count.zero_()
        momentum = cosine_momentum(
            self.config.ema_momentum, self.config.ema_momentum_end, step / total_steps
        )
        if self.quantizer is not None and self.teacher_quantizer is not None:
            follow(self.teacher_quantizer, self.quantizer, momentum)
            values["ema_momentum"] = momentum
        if self.teacher_trunk is not None:
            follow(self.teacher_trunk, self.model.visual.trunk, momentum)
            values["ema_momentum"] = momentum
        return values

    def train(self, mode: bool = True) -> MaskCLIP:
        """The teacher stays in evaluation mode: no stochastic depth in it."""
        super().train(mode)
        if self.teacher_trunk is not None:
            self.teacher_trunk.eval()
        return self

    def teacher_model(self) -> CustomTextCLIP | None:
        """The student with the teacher's trunk."""
        if self.teacher_trunk is None:
            return None
        model = copy.deepcopy(self.model)
        model.visual.trunk.load_state_dict(self.teacher_trunk.state_dict())
        return model
