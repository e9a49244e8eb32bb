"""Models of timm without their classifier: timm's own weights, a file, or untrained ones."""

from __future__ import annotations

import os
import sys
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
from maskclip_bench.errors import CheckpointError
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from torch import nn

    from maskclip_bench.backbones.declaration import BackboneDeclaration

HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class TimmSource(Source):
    """A model of timm."""

    timm: str
    """Name in timm ("vit_base_patch16_224.mae")."""
    checkpoint: str | None = None
    """File of weights instead of timm's own; a relative path starts at the workspace."""
    random_init: bool = False
    """The architecture with untrained weights drawn from the row's seed: a floor for the table."""

    @model_validator(mode="after")
    def _drawn_or_loaded(self) -> TimmSource:
        if self.checkpoint is not None and self.random_init:
            raise ValueError("checkpoint and random_init exclude each other; remove one")
        return self


class Timm(Family):
    """Models of timm; they have no text tower."""

    name = "timm"
    source_model = TimmSource

    def has_text(self, source: TimmSource) -> bool | None:
        """Timm has image encoders only."""
        return False

    def downloads_by_itself(self, source: TimmSource) -> bool:
        """Timm fetches its own weights."""
        return source.checkpoint is None and not source.random_init

    def has_vision_trunk(self, source: TimmSource) -> bool:
        """The model itself."""
        return True

    def missing(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> str | None:
        """Whether the file is there, or timm's weights are in its cache."""
        source: Any = declaration.source
        if source.random_init:
            return None
        path = _checkpoint(source, workspace)
        if path is not None:
            return None if path.is_file() else f"no file {path}. {declaration.obtain}".strip()
        return None if cached_weights(source.timm) is not None else not_in_cache(declaration)

    def contents(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Any:
        """The name, the configuration that timm has for it, and the content of the weights."""
        import timm

        import maskclip_bench.modeling  # noqa: F401  (registers the demo ViT in timm)

        source: Any = declaration.source
        if source.random_init:
            return ["random_init", source.timm, seed]
        path = _checkpoint(source, workspace)
        if path is not None and not path.is_file():
            raise CheckpointError(
                f"{declaration.name}: no file {path}. {declaration.obtain}".strip()
            )
        file = path if path is not None else cached_weights(source.timm)
        cfg = timm.get_pretrained_cfg(source.timm)
        transform = None if cfg is None else _transform_fields(cfg.to_dict())
        return [source.timm, transform, None if file is None else content_hash.file_hash(file)]

    def load(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Loaded:
        """Let timm build the model; its own weights are downloaded if they are not here."""
        import timm
        from timm.data.config import resolve_model_data_config

        import maskclip_bench.modeling  # noqa: F401  (registers the demo ViT in timm)
        from maskclip_bench.backbones import transform as transforms
        from maskclip_bench.backbones.encoders import TimmEncoder
        from maskclip_bench.backbones.timm_weights import load_timm_weights

        source: Any = declaration.source
        name, path = source.timm, _checkpoint(source, workspace)
        if path is not None and not path.is_file():
            raise CheckpointError(
                f"{declaration.name}: no file {path}. {declaration.obtain}".strip()
            )
        if self.downloads_by_itself(source) and cached_weights(name) is None:
            _refuse_offline(name)
        try:
            with seeded(seed, "random_init", name), quiet():
                model = timm.create_model(
                    name, num_classes=0, pretrained=self.downloads_by_itself(source)
                )
        except Exception as error:  # torch, safetensors, timm and its hub have their own
            known = timm.is_model(name.partition(".")[0])
            newer = "" if known else " A newer timm may have it: python -m pip install -U timm."
            raise CheckpointError(
                f"timm {timm.__version__} cannot load {name!r}: {short(error)}.{newer} "
                "timm.list_models(pretrained=True) lists its models; one that is not on this "
                "machine needs network access once."
            ) from error
        if path is not None:
            load_timm_weights(model, path)  # timm itself is not strict without its classifier
        return Loaded(
            model=model,
            encoder=TimmEncoder(model),
            has_text=False,
            architecture=["timm", name.partition(".")[0]],
            **transforms.of_timm(resolve_model_data_config(model)),
        )

    def without_weights(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> tuple[nn.Module, dict[str, Any] | None] | None:
        """The architecture of that name."""
        import timm

        import maskclip_bench.modeling  # noqa: F401  (registers the demo ViT in timm)

        source: Any = declaration.source
        with seeded(seed, "random_init", source.timm), quiet():
            model = timm.create_model(source.timm, num_classes=0)
        return model, {"timm": source.timm, "model_args": {}}

    def vision_trunk(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        from maskclip_bench.backbones.encoders import vision_trunk

        return vision_trunk(model)


def _checkpoint(source: TimmSource, workspace: Workspace) -> Path | None:
    if source.checkpoint is None or source.random_init:
        return None
    return workspace.root / Path(source.checkpoint).expanduser()


def cached_weights(name: str) -> Path | None:
    """Timm's own weights of a model in this machine's cache, or None."""
    if nothing_downloaded(torch_hub() / "checkpoints"):
        return None
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        return None
    if cfg.url and not cfg.hf_hub_id:
        file = torch_hub() / "checkpoints" / str(cfg.url).rpartition("/")[2]
        return file if file.is_file() else None
    if not cfg.hf_hub_id:
        return None
    named = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else ()
    return in_hub_cache(cfg.hf_hub_id, (*named, *HUB_WEIGHTS))


def torch_hub() -> Path:
    """Where torch keeps what it downloads, as `torch.hub.get_dir` says; torch is not imported."""
    loaded = sys.modules.get("torch")
    if loaded is not None:
        return Path(loaded.hub.get_dir())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser() / "hub"


def _refuse_offline(name: str) -> None:
    """Say at once if the host of timm's own weights cannot be reached; timm knows its names."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and (cfg.hf_hub_id or cfg.url):
        refuse_offline(f"timm:{name}", hub_url() if cfg.hf_hub_id else str(cfg.url))


def _transform_fields(cfg: dict[str, Any]) -> dict[str, Any]:
    keys = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
    return {key: cfg.get(key) for key in keys}
