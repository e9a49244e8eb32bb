"""What a pretraining method is: a student, its loss terms, and what happens after a step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn

from maskclip_bench.config import Declaration
from maskclip_bench.data.batch import Batch, Draw, with_tensors
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.losses import Gather, contrastive_loss
from maskclip_bench.modeling.model import ModelConfig, build_model
from maskclip_bench.modeling.packing import PackedLayout, PackedText
from maskclip_bench.modeling.towers import encode_image, encode_text
from maskclip_bench.modeling.vit import ViT, is_vit, vit_parts

Terms = dict[str, Tensor]
"""Named loss terms, already weighted, each a scalar."""

Embeddings = dict[str, Tensor]
"""What the losses across samples need of each sample, [B, ...]."""

Values = dict[str, float | Tensor]
"""Numbers to log; a tensor is a scalar on the device."""

STUDENT, TEACHER_TRUNK, TEACHER_REST = "model", "teacher_trunk", "teacher_rest"
"""Attributes of a method, and so prefixes in its state: the student, the trunk of a momentum
teacher where there is one, and what else of it there is (`teacher.TextAndProjections`)."""

MAX_LOGIT_SCALE = math.log(100)
"""CLIP's and SLIP's clamp."""


class Method(nn.Module, ABC):
    """A way to pretrain.

    A step is `draw` (masks, on the CPU, while the device is busy with the step before), `encode`
    (each forward pass once: embeddings, and loss terms that are means over samples), `contrast`
    (loss terms across all samples of the global batch), backward, the optimizer's step, `update`.
    Everything random comes from the step's generator.

    A subclass writes `encode`, `contrast` if it compares samples, `update` if something follows the
    student (a teacher, a centre), and `draw` if it draws.
    """

    Config: ClassVar[type[Declaration]]
    """The fields a recipe may set."""
    num_ssl_views: ClassVar[int] = 0
    """Augmented views a batch must bring beside the image."""
    uses_text: ClassVar[bool] = True
    """Whether captions take part."""
    linear_embeddings: ClassVar[Mapping[str, str]] = {}
    """Embeddings that `embed` may leave out, as zeros, because a term of `contrast` is a sum of
    them with factors that do not depend on them -> that term."""
    relative_cost: ClassVar[float] = 1.0
    """Rough time of a step of the demo recipe with the method's defaults, CLIP's = 1; for estimates
    of the time left."""

    model: CustomTextCLIP
    """The student."""

    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__()
        self.model = build_model(model_config)

    @classmethod
    def cost_of(cls, config: Any) -> float:
        """`relative_cost` with other fields; a method whose parts can be left out overrides it."""
        return cls.relative_cost

    def student_was_replaced(self) -> None:
        """Called when the student got other weights before training; copies of it get them too."""

    def draw(self, draw: Draw) -> dict[str, Any]:
        """Everything that `encode` draws for a batch, and where words are in its captions.

        Args:
            draw: Sizes, captions and the generator.

        Returns:
            Tensors on the CPU, in dataclasses or not; `drawn` gives them on the device.
        """
        return {"layout": PackedLayout.of(draw.captions)} if self.uses_text else {}

    def drawn(self, batch: Batch) -> Mapping[str, Any]:
        """What `draw` gave, on the device; drawn now if it was not drawn beforehand."""
        if batch.drawn is not None:
            return batch.drawn
        drawn = self.draw(Draw(len(batch.images), batch.captions.cpu(), batch.generator))
        return with_tensors(drawn, lambda tensor: tensor.to(batch.images.device))

    @abstractmethod
    def encode(self, batch: Batch) -> tuple[Embeddings, Terms]:
        """Run every forward pass once -> embeddings [B, ...], and weighted per-sample terms."""

    def embed(self, batch: Batch) -> Embeddings:
        """The embeddings of `encode` alone, for the first pass of gradient accumulation.

        Those of `linear_embeddings` may be zeros. A method whose `encode` does more overrides it;
        what it draws from torch's global generator (stochastic depth) must be drawn in the order of
        `encode`.
        """
        return self.encode(batch)[0]

    @abstractmethod
    def contrast(self, embeddings: Embeddings) -> Terms:
        """Weighted terms that compare samples; gathers over the ranks itself."""

    def forward(self, batch: Batch) -> Terms:
        """All terms and their sum, `loss`."""
        embeddings, terms = self.encode(batch)
        terms = {**terms, **self.contrast(embeddings)}
        return {**terms, "loss": torch.stack(list(terms.values())).sum()}

    @property
    def trains_pairs(self) -> bool:
        """Whether it trains one embedding an image and a caption, which can be compared."""
        return self.uses_text

    @torch.no_grad()
    def after_step(self, *, step: int, total_steps: int) -> dict[str, float]:
        """`update`, its values read from the device in one transfer, and `observe`.

        Args:
            step: Steps done, this one included.
            total_steps: Steps of the run.
        """
        values = read_values(self.update(step=step, total_steps=total_steps))
        self.observe(values, step=step, total_steps=total_steps)
        return values

    def observe(
        self, values: Mapping[str, float], *, step: int, total_steps: int, lr_share: float = 1.0
    ) -> None:
        """Look at what `update` gave, for warnings; by default nothing is done.

        The trainer calls it after each step that follows the warm-up of the learning rate.

        Args:
            values: Read from the device, perhaps a step later.
            step: Steps done, that one included.
            total_steps: Steps of the run.
            lr_share: The step's learning rate, as a share of the highest.
        """

    def update(self, *, step: int, total_steps: int) -> Values:
        """After the optimizer's step: clamp, move a teacher; returns what to log.

        Args:
            step: Steps done, this one included.
            total_steps: Steps of the run.
        """
        self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return {"logit_scale": self.model.logit_scale.double().exp()}

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
            "text_features": encode_text(self.model, packed_text(self, batch)),
        }

    def contrast(self, embeddings: Embeddings) -> Terms:
        """Symmetric InfoNCE, (L_I + L_T) / 2."""
        image_to_text, text_to_image = self.image_text_losses(embeddings)
        return {"contrastive_loss": (image_to_text + text_to_image) / 2}

    def image_text_losses(self, embeddings: Embeddings) -> tuple[Tensor, Tensor]:
        """InfoNCE from images to captions (L_I) and from captions to images (L_T)."""
        return contrastive_loss(
            embeddings["image_features"],
            embeddings["text_features"],
            self.model.logit_scale.exp(),
            gather=self.gather,
        )


class ImageOnlyMethod(Method):
    """Trains the trunk alone; the text tower, the projections and the logit scale stay as they are.

    What it exports is still a whole open_clip model, for the protocols that need only images.
    """

    uses_text = False

    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        self.model.requires_grad_(False)
        self.model.visual.trunk.requires_grad_(True)

    def embed(self, batch: Batch) -> Embeddings:
        """Nothing, unless a method compares samples."""
        return {}

    def contrast(self, embeddings: Embeddings) -> Terms:
        """Nothing, unless a method compares samples."""
        return {}

    def update(self, *, step: int, total_steps: int) -> Values:
        """Does nothing."""
        return {}


def packed_text(method: Method, batch: Batch) -> PackedText:
    """The captions of a batch in the student's text tower.

    Where words are is found on the CPU, which avoids a device synchronization.
    """
    layout = (batch.drawn or {}).get("layout")
    if layout is None:
        layout = PackedLayout.of(batch.captions).to(batch.tokens.device)
    return PackedText(method.model.text, batch.tokens, layout=layout)


def vit_of(method: Method) -> ViT:
    """The parts of the student's trunk, for methods that drop or replace patches.

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
    return vit_parts(trunk)


def read_values(values: Values) -> dict[str, float]:
    """Numbers to log, those on a device in one transfer; their order stays."""
    scalars = [value.double() for value in values.values() if isinstance(value, Tensor)]
    numbers = iter(torch.stack(scalars).tolist() if scalars else [])
    return {
        name: next(numbers) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }
