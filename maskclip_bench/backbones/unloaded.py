"""A row as a job is told of it: what is known of a model without building it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskclip_bench import storage
from maskclip_bench.backbones.row_identity import weights_identity
from maskclip_bench.errors import CheckpointError
from maskclip_bench.results.records import row_id

if TYPE_CHECKING:
    import torch

    from maskclip_bench.backbones.declaration import BackboneDeclaration
    from maskclip_bench.runtime import Workspace


@dataclass(frozen=True)
class UnloadedBackbone:
    """A row that this process does not load: what a job is told, which loads it itself.

    Attributes:
        declaration: Its row.
        seed: Seed of its pretraining (or of its untrained weights).
        device: Where the job computes.
        identity: Hash of all that the row is made of, found without loading it.
    """

    declaration: BackboneDeclaration
    seed: int
    device: torch.device
    identity: str

    @property
    def name(self) -> str:
        """Name of the declaration."""
        return self.declaration.name

    @property
    def row_id(self) -> str:
        """Name of the row: the backbone's, with the seed where it is not 0."""
        return row_id(self.name, self.seed)

    @property
    def weights_fingerprint(self) -> str:
        """The identity: the tensors themselves are hashed by the job."""
        return self.identity

    @property
    def transform_id(self) -> str:
        """Hash of what the row declares of its preprocessing; the job says the rest."""
        return storage.fingerprint(self.declaration.preprocess.model_dump(mode="json"))

    @property
    def has_text(self) -> bool:
        """As far as the declaration says."""
        return bool(self.declaration.has_text)


def unloaded_backbone(
    declaration: BackboneDeclaration,
    *,
    workspace: Workspace,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> UnloadedBackbone:
    """A row for a job, with its identity; no model is built.

    Raises:
        CheckpointError: Its weights are not on this machine, and no library fetches them.
    """
    import torch

    missing = declaration.family.missing(declaration, workspace, seed)
    if missing is not None and not declaration.family.downloads_by_itself(declaration.source):
        raise CheckpointError(f"{declaration.name}: {missing}")
    return UnloadedBackbone(
        declaration, seed, torch.device(device), weights_identity(declaration, workspace, seed)
    )
