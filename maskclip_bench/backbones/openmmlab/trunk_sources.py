"""From the words of a config to a vision trunk: a timm model or open_clip's own ViT.

One of these says where the weights come from:

- `backbone='maskclip_demo'`: a row of the benchmark, from `backbones/*.yaml` (the workspace is
  found as the command line finds it: `$MASKCLIP_BENCH_WORKSPACE`).
- `checkpoint='folder'`: an open_clip folder (an exported model), or a pretraining run's folder,
  of which `weights` takes the student or the teacher.
- `timm='vit_base_patch16_224.mae'`: a timm model; its weights come from `checkpoint='file'`, or
  with `pretrained=True` from timm's hub.
- `open_clip='ViT-B-16'`: an open_clip model; `pretrained='openai'` (a tag or a file) its weights.

`build_trunk` makes the architecture alone, without weights and without a network; `load_trunk`
makes it with its weights. The architecture of a trunk is a dictionary that a checkpoint keeps:
`{"timm": name, "model_args": {...}}` or `{"open_clip": {"embed_dim", "vision_cfg", "quick_gelu"}}`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
import torch
from open_clip.model import _build_vision_tower
from pydantic import Field, model_validator
from torch import Tensor, nn

import maskclip_bench.modeling  # noqa: F401  (registers the demo ViT in timm)
from maskclip_bench.backbones.encoders import vision_trunk
from maskclip_bench.backbones.families.open_clip import architecture_of, trained_with_quick_gelu
from maskclip_bench.backbones.families.open_clip_folder import (
    FOLDER_CONFIG,
    read_config,
    vision_architecture,
)
from maskclip_bench.backbones.loading import load_model
from maskclip_bench.backbones.timm_weights import load_timm_weights
from maskclip_bench.config import Declaration, validate
from maskclip_bench.errors import CheckpointError, ConfigError, MaskCLIPBenchError

logger = logging.getLogger(__name__)

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

    @property
    def named(self) -> str:
        """What it names, for messages."""
        name = self.backbone or self.timm or self.open_clip or self.checkpoint
        return f"{name!r} with {self.checkpoint}" if self.timm and self.checkpoint else repr(name)

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


@dataclass(frozen=True)
class Built:
    """A trunk that `build_trunk` made.

    Attributes:
        trunk: The module.
        architecture: What it was made from; None where it cannot be said in JSON.
        has_weights: Whether its weights are those of the source already.
    """

    trunk: nn.Module
    architecture: dict[str, Any] | None
    has_weights: bool


class SourceNotHere(CheckpointError):
    """The files that say a source's architecture are not on this machine."""


def build_trunk(source: TrunkSource) -> Built:
    """Build a vision trunk without loading weights; nothing is downloaded.

    Raises:
        ConfigError: The source names nothing that is known.
        SourceNotHere: Its architecture is in files that are not here.
    """
    if source.backbone is not None:
        return _built_row(source.backbone, source.seed)
    if source.timm is not None:
        trunk = _from_timm(source.timm, None, False, source.model_args)
        architecture = {"timm": source.timm, "model_args": source.model_args}
        with_weights = source.checkpoint is None and not source.pretrained
        return Built(trunk, _in_json(architecture), with_weights)
    if source.open_clip is not None:
        tag = source.pretrained or None
        if tag is True:
            raise _no_tag()
        quick = trained_with_quick_gelu(source.open_clip, tag)
        trunk = _from_open_clip(source.open_clip, None, quick_gelu=quick)
        return Built(trunk, architecture_of(source.open_clip, quick_gelu=quick), tag is None)
    assert source.checkpoint is not None
    folder = _model_folder(Path(source.checkpoint), source.weights)
    trunk = vision_trunk(_folder_model(folder, load_weights=False))
    return Built(trunk, _folder_architecture(folder), False)


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
        tag = source.pretrained or None
        if tag is True:
            raise _no_tag()
        quick = trained_with_quick_gelu(source.open_clip, tag)
        return _from_open_clip(source.open_clip, tag, quick_gelu=quick)
    assert source.checkpoint is not None
    return vision_trunk(_folder_model(_model_folder(Path(source.checkpoint), source.weights)))


def trunk_of_architecture(architecture: Mapping[str, Any]) -> nn.Module:
    """A trunk with fresh weights from what a checkpoint kept; nothing is downloaded.

    Raises:
        ConfigError: It names no model of timm or open_clip.
    """
    timm_name = architecture.get("timm")
    if timm_name is not None:
        _known_to_timm(timm_name)
        values = {"timm": timm_name, "model_args": architecture.get("model_args") or {}}
        source = validate(values, TrunkSource, where="architecture of the checkpoint")
        return _from_timm(timm_name, None, False, source.model_args)
    config = architecture.get("open_clip")
    if not isinstance(config, dict) or "vision_cfg" not in config:
        raise ConfigError(
            f"The architecture in the checkpoint has the keys {sorted(architecture)}; it should "
            "name a model of timm or open_clip. The checkpoint is of another version."
        )
    vision = dict(config["vision_cfg"])
    if vision.get("timm_model_name"):
        _known_to_timm(vision["timm_model_name"])
        vision["timm_model_pretrained"] = False
    tower = _build_vision_tower(
        config["embed_dim"], vision, quick_gelu=bool(config.get("quick_gelu"))
    )
    return vision_trunk(tower)


def _known_to_timm(name: str) -> None:
    if not isinstance(name, str) or not timm.is_model(name.partition(".")[0]):
        raise ConfigError(
            f"The architecture in the checkpoint names {name!r}, which is no model of the "
            "installed timm. Install the version of timm that it was trained with."
        )


def encode_architecture(architecture: Mapping[str, Any] | None) -> Tensor:
    """JSON as bytes, uint8 [n]; empty for None."""
    text = "" if architecture is None else json.dumps(architecture, sort_keys=True)
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else _nothing()


def decode_architecture(encoded: Tensor) -> dict[str, Any] | None:
    """The inverse of `encode_architecture`.

    Raises:
        CheckpointError: The bytes are damaged.
    """
    if not encoded.numel():
        return None
    try:
        found = json.loads(bytes(encoded.cpu().tolist()).decode())
        if not isinstance(found, dict):
            raise TypeError("no object")
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"The architecture in the checkpoint cannot be read ({error}): the file is damaged. "
            "Use another checkpoint."
        ) from None
    return found


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


def _in_json(architecture: dict[str, Any]) -> dict[str, Any] | None:
    try:
        json.dumps(architecture)
    except TypeError:
        return None
    return architecture


# --- the sources ----------------------------------------------------------------------------------


def _from_row(name: str, seed: int) -> nn.Module:
    from maskclip_bench.backbones.declaration import load_backbone_declaration
    from maskclip_bench.runtime import Workspace

    return vision_trunk(
        load_model(load_backbone_declaration(name), workspace=Workspace.open(), seed=seed)
    )


def _built_row(name: str, seed: int) -> Built:
    from maskclip_bench.backbones.declaration import load_backbone_declaration
    from maskclip_bench.runtime import Workspace

    try:
        declaration = load_backbone_declaration(name)
    except MaskCLIPBenchError as error:
        raise SourceNotHere(str(error)) from error
    workspace = Workspace.open()
    built = declaration.family.without_weights(declaration, workspace, seed)
    if built is not None:
        model, architecture = built
        return Built(vision_trunk(model), architecture, False)
    missing = declaration.family.missing(declaration, workspace, seed)
    if missing is not None:
        raise SourceNotHere(f"{declaration.name}: {missing}")
    return Built(_from_row(name, seed), None, True)


def _model_folder(folder: Path, weights: str) -> Path:
    """The folder of the model itself."""
    for candidate in (folder / ("model" if weights == "student" else "teacher"), folder):
        if (candidate / FOLDER_CONFIG).is_file():
            if candidate == folder and weights == "teacher":
                logger.info("%s is a single model: its own weights are used", folder)
            return candidate
    raise SourceNotHere(
        f"{folder} holds no exported model ({FOLDER_CONFIG} is missing, also in model/ and "
        "teacher/). Give the folder that `maskclip-bench export` wrote, or a run's folder."
    )


def _folder_architecture(folder: Path) -> dict[str, Any]:
    return vision_architecture(read_config(folder)["model_cfg"])


def _folder_model(folder: Path, *, load_weights: bool = True) -> nn.Module:
    try:
        return open_clip.create_model(
            f"local-dir:{folder.absolute()}", device="cpu", load_weights=load_weights
        )
    except Exception as error:  # safetensors, torch and open_clip each have their own
        raise CheckpointError(
            f"The weights in {folder} do not fit the architecture in its {FOLDER_CONFIG}, "
            f"or are damaged ({type(error).__name__}: {_first_lines(error)}). Export the "
            "model again."
        ) from error


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


def _no_tag() -> ConfigError:
    return ConfigError(
        "open_clip= needs the tag of its weights, e.g. pretrained='openai'; got True."
    )


def _from_open_clip(name: str, pretrained: str | None, *, quick_gelu: bool) -> nn.Module:
    try:
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            device="cpu",
            weights_only=True,
            force_quick_gelu=quick_gelu,
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
