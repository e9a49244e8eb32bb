"""Which weights are on this machine; nothing is loaded, nothing is downloaded.

A listing asks here, so this module imports no torch. The families of zoos import their library to
look into its cache; `BackboneDeclaration.downloads_by_itself` says of which rows that is true.
"""

from __future__ import annotations

from pathlib import Path

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.runtime import Workspace


def weights_folder(
    declaration: BackboneDeclaration, workspace: Workspace, seed: int = 0
) -> Path | None:
    """The open_clip folder of a row that has one, else None."""
    return declaration.family.weights_folder(declaration.source, workspace, seed)


def missing_weights(
    declaration: BackboneDeclaration, workspace: Workspace, seed: int = 0
) -> str | None:
    """What is missing of a row's weights and how to get it; None if they are on this machine."""
    return declaration.family.missing(declaration, workspace, seed)


def weights_available(
    declaration: BackboneDeclaration, workspace: Workspace, seed: int = 0
) -> bool:
    """Whether a row's weights are on this machine."""
    return missing_weights(declaration, workspace, seed) is None
