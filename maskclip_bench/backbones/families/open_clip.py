"""Models of open_clip's zoo: an architecture and a tag of weights, or a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from maskclip_bench import content_hash
from maskclip_bench.backbones.families.base import (
    Family,
    Loaded,
    Source,
    in_hub_cache,
    not_in_cache,
    nothing_downloaded,
    quiet,
    seeded,
    short,
)
from maskclip_bench.backbones.families.network import hub_url, refuse_offline
from maskclip_bench.backbones.families.open_clip_folder import FOLDER_WEIGHTS, vision_architecture
from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from torch import nn

    from maskclip_bench.backbones.declaration import BackboneDeclaration


class OpenClipSource(Source):
    """A model of open_clip's zoo."""

    open_clip: str
    """Architecture in open_clip ("ViT-B-16")."""
    pretrained: str | None = None
    """Tag of open_clip's weights ("openai"), or a file of weights."""
    random_init: bool = False
    """The architecture with untrained weights drawn from the row's seed: a floor for the table."""

    @model_validator(mode="after")
    def _weights_are_named(self) -> OpenClipSource:
        if self.pretrained is None and not self.random_init:
            raise ValueError("open_clip needs pretrained: the tag of its weights, e.g. openai")
        if self.pretrained is not None and self.random_init:
            raise ValueError("pretrained and random_init exclude each other; remove one")
        return self


class OpenClip(Family):
    """Models of open_clip's zoo."""

    name = "open_clip"
    source_model = OpenClipSource

    def has_text(self, source: OpenClipSource) -> bool | None:
        """open_clip's models have a text tower."""
        return True

    def downloads_by_itself(self, source: OpenClipSource) -> bool:
        """open_clip fetches the weights of its tags."""
        return not source.random_init and not _is_file(source.pretrained)

    def has_vision_trunk(self, source: OpenClipSource) -> bool:
        """The image tower, or the timm trunk in it."""
        return True

    def source_from_string(self, text: str) -> Source:
        """Architecture, slash, tag: "ViT-B-16/laion2b_s34b_b88k".

        Raises:
            ConfigError: There is no slash.
        """
        name, slash, tag = text.partition("/")
        if not slash:
            raise ConfigError(
                f"'open_clip:{text}' names no weights. Write open_clip:ARCHITECTURE/TAG, e.g. "
                "open_clip:ViT-B-16/laion2b_s34b_b88k."
            )
        return OpenClipSource(open_clip=name, pretrained=tag)

    def missing(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> str | None:
        """Whether the weights are in a cache of open_clip."""
        source: Any = declaration.source
        if source.random_init or cached_weights(source.open_clip, source.pretrained) is not None:
            return None
        return not_in_cache(declaration)

    def contents(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Any:
        """The architecture's configuration, and the content of the file of weights."""
        import open_clip

        source: Any = declaration.source
        config = open_clip.get_model_config(source.open_clip)
        if source.random_init:
            return ["random_init", source.open_clip, config, seed]
        file = cached_weights(source.open_clip, source.pretrained)
        tag = None if _is_file(source.pretrained) else source.pretrained
        content = None if file is None else content_hash.file_hash(file)
        return [source.open_clip, config, tag, content]

    def load(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Loaded:
        """Let open_clip build the model; weights that are not here are downloaded."""
        import open_clip
        import open_clip.pretrained

        from maskclip_bench.backbones import transform as transforms
        from maskclip_bench.backbones.encoders import OpenClipEncoder

        source: Any = declaration.source
        name, pretrained = source.open_clip, source.pretrained
        if self.downloads_by_itself(source) and cached_weights(name, pretrained) is None:
            config = open_clip.pretrained.get_pretrained_cfg(name, pretrained or "")
            if config:
                url = hub_url() if config.get("hf_hub") else config.get("url", "")
                refuse_offline(f"open_clip:{name}/{pretrained}", url)
        try:
            with seeded(seed, "random_init", name), quiet():
                model = open_clip.create_model(
                    name,
                    pretrained=None if source.random_init else pretrained,
                    device="cpu",
                    force_quick_gelu=trained_with_quick_gelu(name, pretrained),
                    weights_only=True,
                )
            preprocess = open_clip.get_model_preprocess_cfg(model)
            tokenize = open_clip.get_tokenizer(name)
        except Exception as error:  # torch, safetensors, open_clip and its hub have their own
            raise CheckpointError(
                f"open_clip {open_clip.__version__}: no {name!r} with pretrained {pretrained!r} "
                f"here: {short(error)}. "
                "python -c 'import open_clip; print(open_clip.list_pretrained())' lists its "
                "models; one that is not on this machine needs network access once."
            ) from error
        return Loaded(
            model=model,
            encoder=OpenClipEncoder(model, tokenize),
            has_text=True,
            architecture=["open_clip", name, _uses_quick_gelu(model)],
            **transforms.of_open_clip(preprocess),
        )

    def without_weights(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> tuple[nn.Module, dict[str, Any] | None] | None:
        """The architecture of that name."""
        import open_clip

        source: Any = declaration.source
        quick_gelu = trained_with_quick_gelu(source.open_clip, source.pretrained)
        with seeded(seed, "random_init", source.open_clip), quiet():
            model = open_clip.create_model(
                source.open_clip, device="cpu", force_quick_gelu=quick_gelu
            )
        return model, architecture_of(source.open_clip, quick_gelu=quick_gelu)

    def vision_trunk(self, model: nn.Module) -> nn.Module:
        """The image tower, or the timm trunk in it."""
        from maskclip_bench.backbones.encoders import vision_trunk

        return vision_trunk(model)


def architecture_of(name: str, *, quick_gelu: bool) -> dict[str, Any] | None:
    """The image tower of an architecture, as `vision_architecture` says it."""
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        return None
    return vision_architecture({**config, **({"quick_gelu": True} if quick_gelu else {})})


def cached_weights(name: str, pretrained: str | None) -> Path | None:
    """The file of weights on this machine: one that is named, or one in open_clip's caches."""
    if pretrained is not None and _is_file(pretrained):
        return Path(pretrained)
    own_cache = Path("~/.cache/clip").expanduser()
    if nothing_downloaded(own_cache):
        return None
    import open_clip.pretrained

    config = open_clip.pretrained.get_pretrained_cfg(name, pretrained or "")
    url, hub = config.get("url", ""), config.get("hf_hub", "")
    downloaded = own_cache / url.rpartition("/")[2]
    if url and downloaded.is_file():
        return downloaded
    repository, file = "/".join(hub.split("/")[:2]), "/".join(hub.split("/")[2:])
    return in_hub_cache(repository, (file,) if file else FOLDER_WEIGHTS) if repository else None


def _is_file(pretrained: str | None) -> bool:
    return pretrained is not None and Path(pretrained).is_file()


def trained_with_quick_gelu(name: str, pretrained: str | None) -> bool:
    """Whether weights need OpenAI's GELU; open_clip only warns when the architecture lacks it."""
    import open_clip.pretrained

    config = open_clip.pretrained.get_pretrained_cfg(name, pretrained or "")
    return bool(config.get("quick_gelu", False))


def _uses_quick_gelu(model: nn.Module) -> bool:
    """The same weights with another activation are another model."""
    from open_clip.transformer import QuickGELU

    return any(isinstance(module, QuickGELU) for module in model.modules())
