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

from collections.abc import Mapping
from typing import Any

from pydantic import Field, SerializeAsAny, field_validator

from maskclip_bench.backbones.families import Family, Source, read_source
from maskclip_bench.backbones.preprocess import Preprocess
from maskclip_bench.config import Declaration, World, load_declaration
from maskclip_bench.data_files import declarations, find_declaration

__all__ = [
    "BackboneDeclaration",
    "Preprocess",
    "Source",
    "backbone_names",
    "load_backbone_declaration",
]

KIND = "backbones"


class BackboneDeclaration(Declaration):
    """One compared model (`backbones/*.yaml`)."""

    name: str = ""
    """Name of the file; set when it is read."""
    display_name: str
    """What a table calls the row."""
    world: World
    """Which data sets it is for: the embedded ones or the real ones."""
    source: SerializeAsAny[Source]
    """Where its weights come from: the key of one family, and what goes with it."""
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

    @field_validator("source", mode="before")
    @classmethod
    def _read_by_its_family(cls, value: Any) -> Any:
        return read_source(value) if isinstance(value, Mapping) else value

    # What it can do, known without loading it.

    @property
    def family(self) -> Family:
        """The family that its source is of."""
        return self.source.family

    @property
    def has_text(self) -> bool | None:
        """Whether it reads texts; None = not known before it is loaded."""
        return self.family.has_text(self.source)

    @property
    def recipe(self) -> str | None:
        """The recipe with which this project pretrains it; None = made elsewhere, or drawn."""
        return self.family.recipe(self.source)

    @property
    def made_here(self) -> bool:
        """Whether this project pretrains the weights."""
        return self.recipe is not None

    @property
    def depends_on_seed(self) -> bool:
        """Whether another seed gives other weights."""
        return self.family.depends_on_seed(self.source)

    @property
    def downloads_by_itself(self) -> bool:
        """Whether its library fetches weights that are not on this machine."""
        return self.family.downloads_by_itself(self.source)

    @property
    def has_vision_trunk(self) -> bool:
        """Whether it has a trunk that gives feature maps, which dense tasks train."""
        return self.family.has_vision_trunk(self.source)


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
