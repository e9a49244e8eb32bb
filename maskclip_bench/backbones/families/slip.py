"""The checkpoints that SLIP's authors published (github.com/facebookresearch/SLIP): CLIP and SLIP.

Their names are mapped to this project's model, an open_clip `CustomTextCLIP` with a timm trunk:

| SLIP | here |
| --- | --- |
| `visual.*` | `visual.trunk.*` |
| `image_projection` [D, P] | `visual.head.proj.weight` [P, D] |
| `transformer.*`, `token_embedding.*`, `positional_embedding`, `ln_final.*`, `text_projection` | `text.*` |
| `logit_scale` | the same |
| `image_mlp.*` (SimCLR's head) | not used |
"""  # noqa: E501

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from maskclip_bench import content_hash
from maskclip_bench.backbones.families.base import Family, Loaded, Source, seeded, short
from maskclip_bench.errors import CheckpointError
from maskclip_bench.normalization import IMAGENET_MEAN, IMAGENET_STD
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from maskclip_bench.backbones.declaration import BackboneDeclaration
    from maskclip_bench.modeling.model import ModelConfig

TRUNKS = {
    "small": "vit_small_patch16_224",
    "base": "vit_base_patch16_224",
    "large": "vit_large_patch16_224",
}
NUM_HEADS = {"small": 12, "base": 12, "large": 16}
"""SLIP's ViT-S is MoCo v3's, with 12 heads in place of 6."""

TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
NOT_USED = ("image_mlp.",)


class SLIPSource(Source):
    """A checkpoint of SLIP's authors."""

    slip: str
    """Name of the file as published, without `.pt`: `slip_base_25ep`, `clip_base_cc3m_40ep`."""
    folder: str = "published"
    """Where the file is; a relative path starts at the workspace."""

    @field_validator("slip")
    @classmethod
    def _names_a_size(cls, name: str) -> str:
        if not re.fullmatch(r"(clip|slip)_(small|base|large)_[a-z0-9_]+", name):
            raise ValueError("is no CLIP or SLIP of SLIP's release, such as slip_base_25ep")
        return name

    @property
    def size(self) -> str:
        """Of the image encoder: small, base or large."""
        return self.slip.split("_")[1]


class SLIPRelease(Family):
    """CLIP and SLIP as their authors trained them."""

    name = "slip"
    source_model = SLIPSource

    def has_text(self, source: SLIPSource) -> bool | None:
        """Both have a text tower."""
        return True

    def has_vision_trunk(self, source: SLIPSource) -> bool:
        """The timm trunk."""
        return True

    def missing(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> str | None:
        """Whether the file is there."""
        path = _checkpoint(declaration.source, workspace)
        return None if path.is_file() else f"no file {path}. {declaration.obtain}".strip()

    def contents(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Any:
        """The architecture and the content of the file."""
        source: Any = declaration.source
        missing = self.missing(declaration, workspace, seed)
        if missing is not None:
            raise CheckpointError(f"{declaration.name}: {missing}")
        return [source.size, content_hash.file_hash(_checkpoint(source, workspace))]

    def load(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Loaded:
        """Build the model and map the weights onto it, strictly."""
        from maskclip_bench.backbones.encoders import OpenClipEncoder
        from maskclip_bench.data.tokenizer import TokenizerConfig, load_tokenizer

        source: Any = declaration.source
        missing = self.missing(declaration, workspace, seed)
        if missing is not None:
            raise CheckpointError(f"{declaration.name}: {missing}")
        path = _checkpoint(source, workspace)
        state = renamed(read_checkpoint(path))
        with seeded(seed, "slip", source.size):
            model = build(source.size)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} is no {source.size} CLIP or SLIP: {short(error)}. Download the file "
                "again, under the name that it has there."
            ) from error
        return Loaded(
            model=model,
            encoder=OpenClipEncoder(model, load_tokenizer(TokenizerConfig())),
            preprocess={
                "image_size": config_of(source.size).image_size,
                "mean": IMAGENET_MEAN,
                "std": IMAGENET_STD,
                "interpolation": "bilinear",
            },
            has_text=True,
            architecture=["slip", config_of(source.size).model_dump(mode="json")],
        )

    def vision_trunk(self, model: nn.Module) -> nn.Module:
        """The timm trunk."""
        from maskclip_bench.backbones.encoders import vision_trunk

        return vision_trunk(model)


def config_of(size: str) -> ModelConfig:
    """The model of a size of image encoder: SLIP's text tower, QuickGELU in it."""
    from maskclip_bench.modeling.model import ModelConfig, VisionConfig

    return ModelConfig(vision=VisionConfig(timm_model=TRUNKS[size]), quick_gelu=True)


def build(size: str) -> nn.Module:
    """The model with fresh weights; attention has SLIP's number of heads."""
    from maskclip_bench.modeling.model import build_model

    model = build_model(config_of(size))
    for block in model.visual.trunk.blocks:  # the weights do not depend on the number of heads
        width = block.attn.num_heads * block.attn.head_dim
        block.attn.num_heads = NUM_HEADS[size]
        block.attn.head_dim = width // NUM_HEADS[size]
        block.attn.scale = block.attn.head_dim**-0.5
    return model


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file, without torch's `module.`; nothing else is unpickled.

    Raises:
        CheckpointError: It is damaged, or holds no state.
    """
    import argparse

    import torch

    try:
        # The file also keeps its command line, an argparse.Namespace, which holds plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        return {name.removeprefix("module."): value for name, value in loaded["state_dict"].items()}
    except Exception as error:  # pickle, zipfile and torch each have their own
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of SLIP ({type(error).__name__}: "
            f"{short(error, limit=200)}). Download it again."
        ) from error


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """SLIP's names and shapes -> this project's; see the table above."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(NOT_USED):
            continue
        if name.startswith("visual."):
            found[name.replace("visual.", "visual.trunk.", 1)] = value
        elif name == "image_projection":
            found["visual.head.proj.weight"] = value.T.contiguous()
        elif name.startswith(TEXT):
            found[f"text.{name}"] = value
        else:
            found[name] = value
    return found


def _checkpoint(source: Any, workspace: Workspace) -> Path:
    return workspace.root / Path(source.folder).expanduser() / f"{source.slip}.pt"
