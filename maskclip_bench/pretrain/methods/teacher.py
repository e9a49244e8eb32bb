"""Teachers: the momentum copy of a student's trunk, and frozen CLIP models of open_clip's zoo."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from pydantic import Field, model_validator
from torch import Tensor, nn

from maskclip_bench.config import Declaration
from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.normalization import IMAGENET_MEAN, IMAGENET_STD
from maskclip_bench.training.checkpoint import restore_module

WEIGHTS_FILE = "open_clip_model.safetensors"
"""In a folder that open_clip reads as `local-dir:`."""

Triple = tuple[float, float, float]


class ImagesConfig(Declaration):
    """Fields of every method with a frozen teacher: how images come to it."""

    image_mean: Triple = IMAGENET_MEAN
    """Filled in by a recipe with its `data.augment.mean`; images are re-normalized for the frozen
    teacher."""
    image_std: Triple = IMAGENET_STD
    """Filled in by a recipe with its `data.augment.std`."""


class StartConfig(Declaration):
    """Fields of every method that may start from a finished model."""

    stages: Literal["joint", "two_stage"] = "joint"
    """joint: all losses from the start. two_stage: the student starts from a finished CLIP model,
    `start_from`."""
    start_from: Path | None = None
    """The `model` folder of a finished run, for `stages: two_stage`; a relative path is below the
    workspace."""

    @model_validator(mode="after")
    def _start_fits(self) -> StartConfig:
        if (self.stages == "two_stage") != (self.start_from is not None):
            raise ValueError("stages: two_stage and start_from (a model folder) need each other")
        return self


def frozen_copy(module: Any) -> Any:
    """A copy that no gradient reaches."""
    return copy.deepcopy(module).requires_grad_(False).eval()


_left_out: ContextVar[Tensor | None] = ContextVar("left_out", default=None)


@contextlib.contextmanager
def left_out_if(flag: Tensor) -> Iterator[None]:
    """Within it, `ema_update` changes nothing where a flag on the device, 0 or 1, is 1."""
    token = _left_out.set(flag)
    try:
        yield
    finally:
        _left_out.reset(token)


def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Teacher = momentum * teacher + (1 - momentum) * student, in one call for all weights."""
    ema_update_tensors(list(teacher.parameters()), list(student.parameters()), momentum)


@torch.no_grad()
def ema_update_tensors(
    teacher: Sequence[Tensor], student: Sequence[Tensor], momentum: float
) -> None:
    """The same for tensors; inside `left_out_if` the flag decides on the device."""
    flag = _left_out.get()
    if flag is None:
        torch._foreach_lerp_(list(teacher), list(student), 1 - momentum)
        return
    share = (1 - momentum) * (1 - flag)
    torch._foreach_mul_(list(teacher), 1 - share)
    torch._foreach_add_(list(teacher), torch._foreach_mul(list(student), share))


class TextAndProjections(nn.Module):
    """A momentum copy of what a model has besides its trunk: text tower, projections, temperature.

    Args:
        model: The student.
    """

    def __init__(self, model: CustomTextCLIP) -> None:
        super().__init__()
        self.head = frozen_copy(model.visual.head)
        self.text = frozen_copy(model.text)
        self.logit_scale = nn.Parameter(model.logit_scale.detach().clone(), requires_grad=False)

    @torch.no_grad()
    def follow(self, model: CustomTextCLIP, momentum: float) -> None:
        """Move towards the student."""
        ema_update(self.head, model.visual.head, momentum)
        ema_update(self.text, model.text, momentum)
        ema_update_tensors([self.logit_scale], [model.logit_scale], momentum)

    def put_into(self, model: CustomTextCLIP) -> None:
        """Replace a model's own."""
        model.visual.head.load_state_dict(self.head.state_dict())
        model.text.load_state_dict(self.text.state_dict())
        with torch.no_grad():
            model.logit_scale.copy_(self.logit_scale)

    def train(self, mode: bool = True) -> TextAndProjections:
        """Stays in evaluation mode."""
        return super().train(False)


def restore_text_and_projections(
    model: CustomTextCLIP, state: Mapping[str, Any], *, where: str
) -> None:
    """Load the state of a `TextAndProjections` into a whole model.

    Raises:
        CheckpointError: It is of another model.
    """
    rest = TextAndProjections(model)
    restore_module(rest, state, where=where)
    rest.put_into(model)


class FrozenTeacherConfig(ImagesConfig):
    """Fields of every method whose teacher may be a frozen model of open_clip."""

    teacher_model: str | None = None
    """Name of the frozen teacher in open_clip (`ViT-B-16`, `hf-hub:...`, `local-dir:...`)."""
    teacher_pretrained: str | None = None
    """Tag of the frozen teacher's weights (`openai`, `laion2b_s34b_b88k`)."""


class EMAConfig(Declaration):
    """Fields of every method with a momentum teacher (EMA)."""

    ema_memory: float | None = Field(default=0.01, gt=0, lt=1)
    """Memory of the teacher and its copy of the quantizer: the mean age of the student's weights in
    them, as a share of the run; the momentum is fixed. Unknown in MaskCLIP. Short, because a
    momentum that goes to 1 ends with a teacher of the middle of the run (COSMOS, fixed too: 0.99 at
    batch 4096, which is 0.1 % of YFCC15M's 25 epochs; 0.999 at batch 1024)."""
    ema_memory_pairs: float | None = Field(default=None, gt=0, json_schema_extra={"neutral": None})
    """Instead of `ema_memory`: the same in image-text pairs that the run sees."""
    pairs_per_step: int | None = Field(default=None, gt=0, json_schema_extra={"neutral": None})
    """Filled in by a recipe with its `global_batch_size`."""
    ema_momentum: float | None = Field(default=None, ge=0, le=1)
    """Instead of `ema_memory`: the momentum per step, at the start (A-CLIP, DetailCLIP: 0.996)."""
    ema_momentum_end: float | None = Field(default=None, ge=0, le=1)
    """Its end after half a cosine (A-CLIP, DetailCLIP: 1); None = it stays."""

    @model_validator(mode="after")
    def _one_schedule(self) -> EMAConfig:
        names = ("ema_memory", "ema_memory_pairs", "ema_momentum")
        given = [name for name in names if getattr(self, name) is not None]
        if "ema_memory" not in self.model_fields_set and len(given) > 1:
            given.remove("ema_memory")  # a default
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; give one")
        if not given:
            raise ValueError(
                "give ema_memory (a share of the run), ema_memory_pairs or ema_momentum (per step)"
            )
        if self.ema_momentum is None and self.ema_momentum_end is not None:
            raise ValueError("ema_momentum_end goes with ema_momentum, its start")
        return self


class EMASchedule:
    """How fast a teacher follows its student, and how old it is.

    Args:
        config: A fixed momentum, given by the teacher's memory or itself, or half a cosine.

    Raises:
        ConfigError: The memory is in pairs, and nothing says how many a step has.
    """

    _steps: float | None

    def __init__(self, config: EMAConfig) -> None:
        self._share, self._steps = config.ema_memory, None
        if config.ema_memory_pairs is not None:
            if config.pairs_per_step is None:
                raise ConfigError(
                    "method.ema_memory_pairs needs method.pairs_per_step, the global batch size; a "
                    "recipe fills it in."
                )
            self._steps = config.ema_memory_pairs / config.pairs_per_step
        self._start, self._end = config.ema_momentum, config.ema_momentum_end
        self._known = (0, 0, 0.0)  # total steps, step, mean age after it

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of the update after `step` of `total_steps` steps."""
        if self._start is None:
            age = self._steps
            if age is None:
                assert self._share is not None
                age = self._share * total_steps
            return age / (1 + age)
        end = self._start if self._end is None else self._end
        return cosine_momentum(self._start, end, step / total_steps)

    def mean_age(self, step: int, total_steps: int) -> float:
        """Mean age in steps of the student's weights in the teacher after that update.

        Each update makes all that is in the teacher one step older, and puts in a share of
        1 - momentum of age 0.
        """
        total, known, age = self._known
        if total != total_steps or known > step:
            known, age = 0, 0.0
        for number in range(known + 1, step + 1):
            age = self.momentum(number, total_steps) * (age + 1)
        self._known = (total_steps, step, age)
        return age


def cosine_momentum(start: float, end: float, progress: float) -> float:
    """Momentum of the teacher after `progress` (0 to 1) of the run (BYOL, Sec. 3.3)."""
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


class FrozenCLIP(nn.Module):
    """The image tower of an open_clip model, giving the features of patches; never trained.

    B images, N patches, D width of its trunk.

    Args:
        name: As open_clip knows it (`ViT-B-16`, `hf-hub:...`, `local-dir:FOLDER`).
        pretrained: Tag of its weights; unused where the name itself says which.
        mean: Of the normalization that images come with, per channel.
        std: Likewise.
        norm: Whether features are those after the tower's final norm.

    Raises:
        ConfigError: open_clip has no such model or weights.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        name: str,
        pretrained: str | None,
        *,
        mean: Triple,
        std: Triple,
        norm: bool = True,
    ) -> None:
        from maskclip_bench.backbones.families.open_clip import trained_with_quick_gelu

        super().__init__()
        device = torch.get_default_device()  # meta, where only shapes are asked for
        try:
            model = open_clip.create_model(
                name,
                pretrained=None if device.type == "meta" else pretrained,
                device=device,
                force_quick_gelu=trained_with_quick_gelu(name, pretrained),
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"open_clip cannot make the teacher {name!r} with pretrained={pretrained!r}: "
                f"{str(error).splitlines()[0]}. See open_clip.list_pretrained()."
            ) from error
        self.name = name
        self.visual = model.visual
        self.norm = norm
        self.requires_grad_(False).eval()
        wanted = open_clip.get_model_preprocess_cfg(model)
        # x is normalized for the student; (x * std + mean - own_mean) / own_std is for the teacher.
        own_mean, own_std = torch.tensor(wanted["mean"]), torch.tensor(wanted["std"])
        scale, shift = torch.tensor(std) / own_std, (torch.tensor(mean) - own_mean) / own_std
        self.register_buffer("image_mean", shift.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", scale.view(1, 3, 1, 1), persistent=False)
        size = self.visual.image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)

    def train(self, mode: bool = True) -> FrozenCLIP:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images as the student sees them, [B, 3, H, W] -> patch features [B, N, D]."""
        images = images * self.image_std + self.image_mean
        if images.shape[-2:] != self.image_size:
            images = F.interpolate(
                images, self.image_size, mode="bicubic", align_corners=False, antialias=True
            )
        features = self.visual.forward_intermediates(
            images,
            indices=1,
            intermediates_only=True,
            normalize_intermediates=self.norm,
            output_fmt="NLC",
        )
        return features["image_intermediates"][-1]

    def width(self, image_size: int, *, num_patches: int) -> int:
        """D, if its grid of patches is the student's.

        Args:
            image_size: Side in pixels of the student's images.
            num_patches: N of the student.

        Raises:
            ConfigError: The grids differ.
        """
        device = self.image_mean.device
        features = self(torch.zeros(1, 3, image_size, image_size, device=device))  # [1, N, D]
        if features.shape[1] != num_patches:
            raise ConfigError(
                f"The teacher {self.name} divides an image into {features.shape[1]} patches, the "
                f"student into {num_patches}. Choose a teacher with the student's grid."
            )
        return int(features.shape[2])


def load_weights(model: nn.Module, folder: Path) -> None:
    """Start a model from a folder that a pretraining run wrote (or open_clip's `local-dir:`).

    Raises:
        CheckpointError: There are no weights in it, or they are of another model.
    """
    from safetensors.torch import load_file

    if next(model.parameters()).is_meta:  # only its shape is asked for
        return
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise CheckpointError(
            f"start_from={folder} holds no {WEIGHTS_FILE}. Give the `model` folder of a finished "
            "pretraining run, or a path to it below the workspace."
        )
    try:
        model.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {file} are of another model: {error}") from error
