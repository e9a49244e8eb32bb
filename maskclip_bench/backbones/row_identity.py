"""The identity of a row's weights, found without loading them and without torch.

`generation` counts how often features of one identity were found changed (`probe`).
"""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.runtime import Workspace

logger = logging.getLogger(__name__)

GENERATION_FILE = "generation"


def weights_identity(declaration: BackboneDeclaration, workspace: Workspace, seed: int = 0) -> str:
    """Hash of all that a row is made of, found without putting it on a device.

    Equal to `Backbone.identity` while nothing changed. A row that cannot be read has an identity
    that no other one equals.
    """
    try:
        identity = declaration.family.identity(declaration, workspace=workspace, seed=seed)
    except MaskCLIPBenchError as error:
        logger.debug("no identity of %s: %s", declaration.name, error)
        return f"unknown-{uuid.uuid4().hex}"
    return with_generation(identity, generation(identity, workspace))


def generation(identity: str, workspace: Workspace) -> int:
    """How often the features of an identity were found changed in this workspace."""
    try:
        path = probe_folder(identity, workspace) / GENERATION_FILE
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def with_generation(identity: str, number: int) -> str:
    """The identity, marked with its generation from the first change on."""
    return identity if number == 0 else f"{identity}.{number}"


def probe_folder(identity: str, workspace: Workspace) -> Path:
    """Where the probes of an identity are stored."""
    return workspace.root / "probes" / identity
