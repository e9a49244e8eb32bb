"""Compared models: their declarations (`backbones/*.yaml`), loading them, and their features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskclip_bench.backbones.declaration import (
    BackboneDeclaration,
    Preprocess,
    Source,
    backbone_names,
    load_backbone_declaration,
)
from maskclip_bench.backbones.presence import (
    missing_weights,
    weights_available,
    weights_folder,
)
from maskclip_bench.backbones.resolve import resolve_backbone, row_name
from maskclip_bench.backbones.row_identity import weights_identity

if TYPE_CHECKING:
    from maskclip_bench.backbones.in_memory import as_backbone
    from maskclip_bench.backbones.loading import (
        Backbone,
        load_backbone,
    )
    from maskclip_bench.backbones.unloaded import UnloadedBackbone, unloaded_backbone

_LOADING = ("Backbone", "load_backbone")
_UNLOADED = ("UnloadedBackbone", "unloaded_backbone")

__all__ = [
    "Backbone",
    "BackboneDeclaration",
    "Preprocess",
    "Source",
    "UnloadedBackbone",
    "as_backbone",
    "backbone_names",
    "load_backbone",
    "load_backbone_declaration",
    "missing_weights",
    "resolve_backbone",
    "row_name",
    "unloaded_backbone",
    "weights_available",
    "weights_folder",
    "weights_identity",
]


def __getattr__(name: str) -> Any:
    """Import torch only when a model is loaded, not when declarations are listed."""
    if name in _LOADING:
        from maskclip_bench.backbones import loading

        return getattr(loading, name)
    if name in _UNLOADED:
        from maskclip_bench.backbones import unloaded

        return getattr(unloaded, name)
    if name == "as_backbone":
        from maskclip_bench.backbones.in_memory import as_backbone

        return as_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
