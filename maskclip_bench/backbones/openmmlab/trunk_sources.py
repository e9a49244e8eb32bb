"""From the words of a config to a vision trunk: a timm model or open_clip's own ViT.

One of these says where the weights come from:

- `backbone='maskclip_demo'`: a row of the benchmark, from `backbones/*.yaml` (the workspace is
  found as the command line finds it: `$MASKCLIP_BENCH_WORKSPACE`).
- `checkpoint='folder'`: an open_clip folder (an exported model), or a pretraining run's folder,
  of which `weights` takes the student or the teacher.
- `timm='vit_base_patch16_224.mae'`: a timm model; its weights come from `checkpoint='file'`, or
  with `pretrained=True` from timm's hub.
- `open_clip='ViT-B-16'`: an open_clip model; `pretrained='openai'` (a tag or a file) its weights.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
from pydantic import Field, model_validator
from torch import nn

import maskclip_bench.modeling  # noqa: F401  (registers the demo ViT in timm)
from maskclip_bench.backbones.encoders import vision_trunk
from maskclip_bench.backbones.families.open_clip import trained_with_quick_gelu
from maskclip_bench.backbones.loading import load_model
from maskclip_bench.backbones.timm_weights import load_timm_weights
from maskclip_bench.config import Declaration
from maskclip_bench.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

CONFIG_FILE = "open_clip_config.json"
NOT_IN_MAPS = ("head", "fc", "attn_pool", "classifier")
"""Beginnings of the names in a timm model that come after its feature maps."""


class TrunkSource(Declaration):
    """Where a trunk and its weights come from: exactly one of the first four is set."""

    backbone: str | None = None
    """Name of a declaration in `backbones/`."""
    checkpoint: str | None = None
    """Exported folder or a pretraining run's folder; with `timm` a file of weights."""
    timm: str | None = None
    """Name in timm."""
    open_clip: str | None = None
    """Name in open_clip."""
    pretrained: bool | str = False
    """With `timm` a bool, with `open_clip` a tag or a file."""
    weights: Literal["student", "teacher"] = "student"
    """Of a pretraining run's folder."""
    seed: int = 0
    """Of `backbone`: which repetition of its pretraining."""
    model_args: dict[str, Any] = Field(default_factory=dict)
    """More for timm's `create_model`."""

    @model_validator(mode="after")
    def _one_source(self) -> TrunkSource:
        folder = self.checkpoint if self.timm is None else None
        given = {
            "backbone": self.backbone,
            "checkpoint": folder,
            "timm": self.timm,
            "open_clip": self.open_clip,
        }
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise ValueError(
                f"The backbone of an OpenMMLab config needs exactly one source, got "
                f"{named or 'none'}. Set one of backbone=, checkpoint= (a folder), timm=, "
                "open_clip=; a checkpoint= file goes with timm=."
            )
        if self.weights == "teacher" and folder is None:
            raise ValueError(
                "weights='teacher' goes with checkpoint= (the folder of a pretraining run). The "
                "teacher of a row is a row of its own: see maskclip-bench list backbones."
            )
        if self.model_args and self.timm is None:
            raise ValueError(f"model_args {sorted(self.model_args)} go with timm= alone.")
        files = sorted(
            {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}.intersection(
                self.model_args
            )
        )
        if files:
            raise ValueError(f"model_args {files} name files of weights; give them as checkpoint=.")
        return self


def load_trunk(source: TrunkSource) -> nn.Module:
    """Build a vision trunk with its weights.

    Raises:
        ConfigError: The source names nothing that is known.
        CheckpointError: The weights are missing or of another architecture.
    """
    if source.backbone is not None:
        return _from_row(source.backbone, source.seed)
    if source.timm is not None:
        return _from_timm(
            source.timm, source.checkpoint, bool(source.pretrained), source.model_args
        )
    if source.open_clip is not None:
        return _from_open_clip(source.open_clip, source.pretrained or None)
    assert source.checkpoint is not None
    return _from_folder(Path(source.checkpoint), source.weights)


def _from_row(name: str, seed: int) -> nn.Module:
    from maskclip_bench.backbones.declaration import load_backbone_declaration
    from maskclip_bench.runtime import Workspace

    return vision_trunk(
        load_model(load_backbone_declaration(name), workspace=Workspace.open(), seed=seed)
    )


def _from_folder(folder: Path, weights: str) -> nn.Module:
    for candidate in (folder / ("model" if weights == "student" else "teacher"), folder):
        if (candidate / CONFIG_FILE).is_file():
            if candidate == folder and weights == "teacher":
                logger.info("%s is a single model: its own weights are used", folder)
            try:
                model, _, _ = open_clip.create_model_and_transforms(
                    f"local-dir:{candidate.absolute()}", device="cpu"
                )
            except Exception as error:  # safetensors, torch and open_clip each have their own
                raise CheckpointError(
                    f"The weights in {candidate} do not fit the architecture in its {CONFIG_FILE}, "
                    f"or are damaged ({type(error).__name__}: {_first_lines(error)}). Export the "
                    "model again."
                ) from error
            return vision_trunk(model)
    raise CheckpointError(
        f"{folder} holds no exported model ({CONFIG_FILE} is missing, also in model/ and "
        "teacher/). Give the folder that `maskclip-bench export` wrote, or a run's folder."
    )


def _from_timm(
    name: str, checkpoint: str | None, pretrained: bool, model_args: dict[str, Any]
) -> nn.Module:
    try:
        trunk = timm.create_model(name, pretrained=pretrained, **model_args)
    except OSError as error:  # also what Hugging Face's hub and urllib raise
        raise CheckpointError(
            f"timm={name!r}: its weights cannot be fetched ({_first_lines(error)}). They need "
            "network access once; or download them and give the file as checkpoint=."
        ) from error
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"timm={name!r}: {_first_lines(error)}. timm.list_models() lists its names, and "
            "model_args= holds what that model takes."
        ) from error
    if checkpoint is not None:
        load_timm_weights(trunk, Path(checkpoint), unused=NOT_IN_MAPS)
    return trunk


def _from_open_clip(name: str, pretrained: bool | str | None) -> nn.Module:
    if pretrained is True:
        raise ConfigError(
            "open_clip= needs the tag of its weights, e.g. pretrained='openai'; got True."
        )
    try:
        model = open_clip.create_model(
            name,
            pretrained=pretrained or None,
            device="cpu",
            weights_only=True,
            force_quick_gelu=trained_with_quick_gelu(name, pretrained or None),
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"open_clip={name!r} with pretrained={pretrained!r}: {_first_lines(error)}. "
            "open_clip.list_pretrained() lists its models; one that is not on this machine needs "
            "network access once."
        ) from error
    return vision_trunk(model)


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
