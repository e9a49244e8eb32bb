"""A row of the table: one compared model, where its weights come from, how its images are prepared.

One file a row, `backbones/{method}_{arch}_{data}.yaml`:

    display_name: MaskCLIP
    world: real
    source: {recipe: maskclip_vit-b-16_yfcc15m}
    method: MaskCLIP
    arch: ViT-B/16
    pretrain_data: YFCC15M-V1
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from maskclip_bench.config import Declaration, World, load_declaration
from maskclip_bench.data_files import declarations, find_declaration

KIND = "backbones"
SOURCES = ("recipe", "open_clip", "open_clip_folder", "timm", "huggingface", "python")


class Source(Declaration):
    """Where weights come from: exactly one of `recipe` ... `python`, and what goes with it."""

    recipe: str | None = None
    """Name in `configs/pretrain/`: pretrained by this project, on this machine or copied to it."""
    open_clip: str | None = None
    """Architecture in open_clip's zoo ("ViT-B-16"); goes with `pretrained`."""
    open_clip_folder: str | None = None
    """Folder with `open_clip_config.json` and weights; relative paths start at the workspace."""
    timm: str | None = None
    """Name in timm ("vit_base_patch16_224.mae")."""
    huggingface: str | None = None
    """Model id on Hugging Face, or a folder in its format; needs the extra `huggingface`."""
    python: str | None = None
    """`package.module:factory`; called with `arguments`, returns an encoder (see `loading`)."""

    weights: Literal["student", "teacher"] = "student"
    """Which weights of a pretraining run: the trained ones, or the momentum teacher's."""
    pretrained: str | None = None
    """Tag of open_clip's weights ("openai")."""
    checkpoint: str | None = None
    """File of weights for a timm model instead of timm's own; relative to the workspace."""
    random_init: bool = False
    """The architecture with untrained weights drawn from the row's seed: a floor for the table."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the `python` factory."""

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of {', '.join(SOURCES)}; got {', '.join(given) or 'none'}"
            )
        kind = given[0]
        if kind == "open_clip" and self.pretrained is None and not self.random_init:
            raise ValueError("open_clip needs pretrained: the tag of its weights, e.g. openai")
        for key, owners in (
            ("pretrained", ("open_clip",)),
            ("checkpoint", ("timm",)),
            ("arguments", ("python",)),
        ):
            if getattr(self, key) and kind not in owners:
                raise ValueError(f"{key} goes with {' or '.join(owners)}, not with {kind}")
        if self.weights == "teacher" and kind != "recipe":
            raise ValueError(f"weights: teacher goes with recipe, not with {kind}")
        return self

    @property
    def kind(self) -> str:
        """Which of the sources it is."""
        return next(name for name in SOURCES if getattr(self, name) is not None)

    @property
    def made_here(self) -> bool:
        """Whether the benchmark itself pretrains the weights."""
        return self.recipe is not None and not self.random_init


class Preprocess(Declaration):
    """How a test image is prepared; what is left out comes from the model's own configuration."""

    image_size: int | None = None
    """Side of the square that enters the model, in pixels."""
    resize_to: int | None = None
    """Short side after resizing, before the centre crop; by default the image size."""
    resize_mode: Literal["shortest", "squash"] | None = None
    """shortest: keep the aspect ratio and crop the centre. squash: resize both sides."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """Resize filter; SLIP's protocol uses bilinear, CLIP's bicubic."""
    mean: tuple[float, float, float] | None = None
    """Per channel, of values 0 to 1."""
    std: tuple[float, float, float] | None = None
    """Per channel, of values 0 to 1."""


class BackboneDeclaration(Declaration):
    """One compared model (`backbones/*.yaml`)."""

    name: str = ""
    """Name of the file; set when it is read."""
    display_name: str
    """What a table calls the row."""
    world: World
    """Which data sets it is for: the embedded ones or the real ones."""
    source: Source
    """Where its weights come from."""
    method: str = ""
    """How it was pretrained, e.g. "MaskCLIP"."""
    arch: str = ""
    """Architecture as prose writes it, e.g. "ViT-B/16"."""
    pretrain_data: str = ""
    """What it was pretrained on, e.g. "YFCC15M-V1"."""
    preprocess: Preprocess = Preprocess()
    """Deviations from the model's own preprocessing."""
    openmmlab: dict[str, Any] = Field(default_factory=dict)
    """What dense tasks need to know beyond `source`."""
    obtain: str = ""
    """How to get the weights, one line for `maskclip-bench list backbones`."""


def backbone_names() -> list[str]:
    """All declared backbones, sorted."""
    return list(declarations(KIND))


def load_backbone_declaration(name: str) -> BackboneDeclaration:
    """Read the declaration of one backbone, by name or by the path of its file.

    Raises:
        UnknownNameError: There is none of that name.
        ConfigError: Its file is wrong.
    """
    path = find_declaration(
        KIND, name, singular="backbone", listing="maskclip-bench list backbones"
    )
    declaration = load_declaration(path, BackboneDeclaration)
    return declaration.model_copy(update={"name": path.stem})
