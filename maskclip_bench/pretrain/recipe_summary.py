"""What a listing says of a recipe, read from its YAML alone: no method and no torch is imported.

`recipe.load_recipe` reads and checks all of it.
"""

from __future__ import annotations

from pydantic import ConfigDict

from maskclip_bench.config import Declaration, World, load_declaration
from maskclip_bench.data_files import declarations, find_declaration

KIND = "configs/pretrain"
LISTING = "maskclip-bench list recipes"


class _Part(Declaration):
    """Some keys of a section; the others are not looked at."""

    model_config = ConfigDict(extra="ignore")


class _Method(_Part):
    name: str


class _Vision(_Part):
    timm_model: str = "vit_base_patch16_224"


class _Model(_Part):
    vision: _Vision = _Vision()


class RecipeSummary(_Part):
    """The keys of a recipe that a listing shows."""

    name: str = ""
    """Path below `configs/pretrain/`, without its suffix."""
    description: str = ""
    """One line."""
    world: World
    """Of the data it trains on."""
    method: _Method
    """How it pretrains."""
    model: _Model = _Model()
    """What it pretrains."""
    epochs: float | None = None
    """Passes over the data, or `num_pairs`."""
    num_pairs: int | None = None
    """Image-text pairs seen in the whole run."""

    @property
    def length(self) -> str:
        """How long it trains: "64,000" pairs or "25 epochs"."""
        return length_in_words(self.num_pairs, self.epochs)


def length_in_words(num_pairs: int | None, epochs: float | None) -> str:
    """How long a recipe trains, for listings; one of the two is given."""
    return f"{num_pairs:,}" if num_pairs else f"{epochs or 0:g} epochs"


def recipe_names() -> list[str]:
    """Names of all recipes in the catalogue."""
    return list(declarations(KIND))


def recipe_summary(name: str) -> RecipeSummary:
    """Read what a listing shows of a recipe.

    Raises:
        UnknownNameError: There is no such recipe.
        ConfigError: What is read of it is not valid.
    """
    path = find_declaration(KIND, name, singular="recipe", listing=LISTING)
    return load_declaration(path, RecipeSummary).model_copy(update={"name": name})
