"""Models that this project pretrains: a recipe in `configs/pretrain/`, a folder for each seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maskclip_bench.backbones.families.base import Loaded, Source, seeded
from maskclip_bench.backbones.families.open_clip_folder import FolderFamily, vision_architecture
from maskclip_bench.config import read_yaml, validate
from maskclip_bench.data_files import find_declaration
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from torch import nn

    from maskclip_bench.backbones.declaration import BackboneDeclaration
    from maskclip_bench.data.pair_config import AugmentConfig
    from maskclip_bench.data.tokenizer import TokenizerConfig
    from maskclip_bench.modeling.model import ModelConfig


class RecipeSource(Source):
    """A pretraining recipe of this project."""

    recipe: str
    """Name in `configs/pretrain/`: pretrained by this project, on this machine or copied to it."""
    weights: Literal["student", "teacher"] = "student"
    """Which weights of a pretraining run: the trained ones, or the momentum teacher's."""
    random_init: bool = False
    """The architecture with untrained weights drawn from the row's seed: a floor for the table."""


class Recipe(FolderFamily):
    """Models pretrained by this project."""

    name = "recipe"
    source_model = RecipeSource

    def recipe(self, source: RecipeSource) -> str | None:
        """Its name, unless the weights are drawn."""
        return None if source.random_init else source.recipe

    def depends_on_seed(self, source: RecipeSource) -> bool:
        """Always: of the pretraining, or of the drawn weights."""
        return True

    def weights_folder(self, source: RecipeSource, workspace: Workspace, seed: int) -> Path | None:
        """The exported model of the run with that seed; None for drawn weights."""
        if source.random_init:
            return None
        part = "teacher" if source.weights == "teacher" else "model"
        return workspace.pretraining(source.recipe, seed) / part

    def missing(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> str | None:
        """Nothing, for drawn weights."""
        source: Any = declaration.source
        if source.random_init:
            return None
        return super().missing(declaration, workspace, seed)

    def remedy(self, source: RecipeSource) -> str:
        """The command that makes the weights."""
        return f"Pretrain it: maskclip-bench pretrain {source.recipe}"

    def contents(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Any:
        """Of drawn weights the parts of the recipe that they follow, and the seed."""
        source: Any = declaration.source
        if not source.random_init:
            return super().contents(declaration, workspace, seed)
        parts = [part.model_dump(mode="json") for part in _read_recipe(source.recipe)]
        return ["random_init", source.recipe, *parts, seed]

    def without_weights(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> tuple[nn.Module, dict[str, Any] | None] | None:
        """What the exported folder says, or, where there is none, the recipe."""
        from maskclip_bench.modeling.model import build_model

        source: Any = declaration.source
        exported = super().without_weights(declaration, workspace, seed)
        if exported is not None:
            return exported
        config, _, _ = _read_recipe(source.recipe)
        with seeded(seed, "random_init", source.recipe):
            model = build_model(config)
        return model, vision_architecture(config.to_open_clip())

    def load(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Loaded:
        """The exported model, or the architecture with drawn weights."""
        source: Any = declaration.source
        if source.random_init:
            return _load_random(source.recipe, seed)
        return super().load(declaration, workspace, seed)


def _read_recipe(name: str) -> tuple[ModelConfig, TokenizerConfig, AugmentConfig]:
    """What untrained weights follow of a recipe: model, tokenizer, normalization."""
    from maskclip_bench.data.pair_config import AugmentConfig
    from maskclip_bench.data.tokenizer import TokenizerConfig
    from maskclip_bench.modeling.model import ModelConfig

    path = find_declaration(
        "configs/pretrain", name, singular="recipe", listing="maskclip-bench list recipes"
    )
    values = read_yaml(path)
    augment = values.get("data", {}).get("augment", {})
    return (
        validate(values.get("model", {}), ModelConfig, where=f"{path}: model"),
        validate(values.get("tokenizer", {}), TokenizerConfig, where=f"{path}: tokenizer"),
        validate(augment, AugmentConfig, where=f"{path}: data.augment"),
    )


def _load_random(recipe: str, seed: int) -> Loaded:
    from maskclip_bench.backbones.encoders import OpenClipEncoder
    from maskclip_bench.data.tokenizer import load_tokenizer
    from maskclip_bench.modeling.model import build_model

    config, tokenizer, augment = _read_recipe(recipe)
    with seeded(seed, "random_init", recipe):
        model = build_model(config)
    return Loaded(
        model=model,
        encoder=OpenClipEncoder(model, load_tokenizer(tokenizer)),
        preprocess={"image_size": config.image_size, "mean": augment.mean, "std": augment.std},
        has_text=True,
        architecture=config.model_dump(mode="json"),
    )
