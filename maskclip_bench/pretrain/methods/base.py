"""What a pretraining method is: a student, its loss terms, and what happens after a step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn

from maskclip_bench.config import Declaration
from maskclip_bench.data.batch import Batch
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.blocks import PackedLayout
from maskclip_bench.modeling.losses import Gather, contrastive_loss
from maskclip_bench.modeling.model import ModelConfig, build_model
from maskclip_bench.modeling.towers import encode_image, encode_text, is_vit

Terms = dict[str, Tensor]
"""Named loss terms, already weighted, each a scalar."""

Embeddings = dict[str, Tensor]
"""What the losses across samples need of each sample, [B, ...]."""

STUDENT, TEACHER_TRUNK = "model", "teacher_trunk"
"""Attributes of a method, and so prefixes in its state: the student, and the trunk of a momentum
teacher where there is one."""

MAX_LOGIT_SCALE = math.log(100)
"""CLIP's and SLIP's clamp."""


class Method(nn.Module, ABC):
    """A way to pretrain.

    A step is `encode` (each forward pass once: embeddings, and loss terms that are means over
    samples), `contrast` (loss terms across all samples of the global batch), backward, update,
    `after_step`. Everything random comes from `batch.generator`.
    """

    Config: ClassVar[type[Declaration]]
    """The fields a recipe may set."""
    num_ssl_views: ClassVar[int] = 0
    """Augmented views a batch must bring beside the image."""
    uses_text: ClassVar[bool] = True
    """Whether captions take part."""
    relative_cost: ClassVar[float] = 1.0
    """Rough time of a step of the demo recipe, CLIP's = 1; for estimates of the time left."""

    model: CustomTextCLIP
    """The student."""

    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__()
        self.model = build_model(model_config)

    @abstractmethod
    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Run every forward pass once -> embeddings [B, ...], and weighted per-sample terms."""

    @abstractmethod
    def contrast(self, embeddings: Embeddings) -> Terms:
        """Weighted terms that compare samples; gathers over the ranks itself."""

    def forward(self, batch: Batch) -> Terms:
        """All terms and their sum, `loss`."""
        embeddings, terms = self.encode(batch)
        terms = {**terms, **self.contrast(embeddings)}
        return {**terms, "loss": torch.stack(list(terms.values())).sum()}

    @torch.no_grad()
    def after_step(self, *, step: int, total_steps: int) -> dict[str, float]:
        """Clamp, update the teacher, ...; returns what to log.

        Args:
            step: Steps done, this one included.
            total_steps: Steps of the run.
        """
        self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return {"logit_scale": math.exp(float(self.model.logit_scale.detach()))}

    def teacher_model(self) -> CustomTextCLIP | None:
        """The momentum teacher as a whole model, for export; None if there is none."""
        return None

    def parameters_without_weight_decay(self) -> set[str]:
        """Names exempt from decay: 1-D parameters and biases (SLIP's `main.py`)."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim < 2}


class ContrastiveConfig(Declaration):
    """Fields of every method with CLIP's loss."""

    gather: Gather = "exact"
    """exact: gradients flow to the embeddings of all processes. paper: over several processes,
    what is gathered is constant, as in SLIP's code."""


class ContrastiveMethod(Method):
    """CLIP's loss on the whole image, which SLIP, CLIP+MAE and MaskCLIP add to."""

    def __init__(self, config: ContrastiveConfig, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        self.gather = config.gather

    def encode_pairs(self, batch: Batch) -> Embeddings:
        """Embeddings of images and captions, each [B, P]."""
        return {
            "image_features": encode_image(self.model, batch.images),
            "text_features": encode_text(self.model, batch.tokens, packed_layout(batch)),
        }

    def contrast(self, embeddings: Embeddings) -> Terms:
        """Symmetric InfoNCE, (L_I + L_T) / 2."""
        image_to_text, text_to_image = contrastive_loss(
            embeddings["image_features"],
            embeddings["text_features"],
            self.model.logit_scale.exp(),
            gather=self.gather,
        )
        return {"contrastive_loss": (image_to_text + text_to_image) / 2}


class ImageOnlyMethod(Method):
    """Trains the trunk alone; the text tower, the projections and the logit scale stay as they are.

    What it exports is still a whole open_clip model, for the protocols that need only images.
    """

    uses_text = False

    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        self.model.requires_grad_(False)
        self.model.visual.trunk.requires_grad_(True)

    def contrast(self, embeddings: Embeddings) -> Terms:
        """Nothing, unless a method compares samples."""
        return {}

    @torch.no_grad()
    def after_step(self, *, step: int, total_steps: int) -> dict[str, float]:
        """Nothing to do."""
        return {}


def packed_layout(batch: Batch) -> PackedLayout:
    """Where the words of the captions lie; found on the CPU, so that no device is waited for."""
    return PackedLayout.of(batch.captions).to(batch.tokens.device)


def vit_trunk(method: Method) -> Any:
    """The trunk of the student, for methods that drop or replace patches.

    Raises:
        ConfigError: It is not a ViT.
    """
    trunk = method.model.visual.trunk
    if not is_vit(trunk):
        raise ConfigError(
            f"{type(method).__name__} hides patches, which needs a ViT, and the trunk is a "
            f"{type(trunk).__name__}. Set model.vision.timm_model to a vit_*, or choose method "
            "clip, slip or simclr."
        )
    return trunk
