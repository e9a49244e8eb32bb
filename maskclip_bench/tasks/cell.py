"""A cell of the table: a row, a column, and hashes of all that its number depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maskclip_bench import backbones, storage
from maskclip_bench.backbones import BackboneDeclaration
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.progress import Unit
from maskclip_bench.results.records import Cell, Record, row_id
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.protocols.base import Protocol, cell_fingerprint

if TYPE_CHECKING:
    from maskclip_bench.backbones import Backbone, UnloadedBackbone


@dataclass(frozen=True)
class Row:
    """A backbone with the seed of its pretraining (0 for weights from elsewhere)."""

    name: str
    declaration: BackboneDeclaration
    seed: int = 0

    @property
    def can_be_made(self) -> bool:
        """Whether its weights take only minutes to make: a recipe of the demo world."""
        return self.declaration.world == "demo" and self.declaration.made_here

    @property
    def label(self) -> str:
        """For people: display name, and the seed if it is not 0."""
        suffix = f" (seed {self.seed})" if self.seed else ""
        return f"{self.declaration.display_name}{suffix}"


@dataclass(frozen=True)
class Column:
    """A protocol on a data set."""

    protocol: Protocol
    declaration: TaskDeclaration

    @property
    def name(self) -> str:
        """`protocol/dataset`."""
        return f"{self.protocol.name}/{self.declaration.name}"

    @property
    def on_demo_data(self) -> bool:
        """Whether its files are part of the demo world, which this package draws."""
        return Path(self.declaration.reader.root).parts[:1] == ("demo",)


@dataclass(frozen=True)
class PlannedCell:
    """A cell the run has, or will have, a record of.

    Attributes:
        recorded: Its record, if that still holds.
        refused: Why it cannot be measured here; its record then says so.
        asked: Whether its row and its protocol were asked for by name, so that leaving it out is
            a failure.
    """

    row: Row
    column: Column
    recorded: Record | None
    refused: BaseException | None = None
    asked: bool = False

    @property
    def row_id(self) -> str:
        """Name of its row: the backbone's, with the seed where it is not 0."""
        return row_id(self.row.name, self.row.seed)

    @property
    def is_to_measure(self) -> bool:
        """Whether it has no record and this machine can make one."""
        return self.recorded is None and self.refused is None

    @property
    def unit(self) -> Unit:
        """Its line in the display."""
        return Unit(
            key=f"{self.row.name}/{self.row.seed}/{self.column.name}",
            label=f"{self.row.label}: {self.column.name}",
            expected_seconds=self.column.protocol.expected_seconds,
        )


@dataclass(frozen=True)
class LeftOut:
    """Something of the suite that this machine cannot do now.

    Attributes:
        error: What its cells fail with, where it was asked for by name; else None.
    """

    what: str
    why: str
    remedy: str
    error: MaskCLIPBenchError | None = None


def records_of(workspace: Workspace, limit: int | None) -> Path:
    """Folder of the records; those of a run with a limit are apart, so that no table mixes them."""
    if limit is None:
        return workspace.records
    return workspace.root / f"records_limit_{limit}"


def weights_identity(row: Row, workspace: Workspace) -> str:
    """Hash of all that a row is made of, found without loading it on a device."""
    return backbones.weights_identity(row.declaration, workspace, row.seed)


def fingerprints_of(
    protocol: Protocol,
    task: TaskDeclaration,
    backbone: BackboneDeclaration,
    workspace: Workspace,
    *,
    weights: str,
    limit: int | None = None,
    precision: str = "float32",
) -> dict[str, str]:
    """Hashes of all that a cell's number depends on, by part.

    Args:
        protocol: How it is measured.
        task: The data set.
        backbone: The row.
        workspace: Where the data is.
        weights: Identity of the row's weights.
        limit: Images of each split, for a run that does not use all of them.
        precision: Of the forward pass; jobs have their own.

    Raises:
        DataError: The data is missing or broken.
        ConfigError: The settings do not fit.
    """
    parts = {
        "weights": weights,
        "preprocess": preprocess_fingerprint(backbone),
        **protocol.cell_fingerprints(task, backbone, workspace),
    }
    if limit is not None:
        parts["limit"] = str(limit)
    if precision != "float32" and not protocol.runs_as_job:
        parts["precision"] = precision
    return parts


def fingerprints_of_backbone(
    protocol: Protocol,
    task: TaskDeclaration,
    backbone: Backbone | UnloadedBackbone,
    workspace: Workspace,
    *,
    limit: int | None = None,
) -> dict[str, str]:
    """The same for a loaded backbone.

    Raises:
        DataError: The data is missing or broken.
        ConfigError: The settings do not fit.
    """
    return fingerprints_of(
        protocol,
        task,
        backbone.declaration,
        workspace,
        weights=backbone.identity or backbone.weights_fingerprint,
        limit=limit,
        precision=getattr(backbone, "precision", "float32"),
    )


def preprocess_fingerprint(backbone: BackboneDeclaration) -> str:
    """Hash of what a row declares of its preprocessing."""
    return storage.fingerprint(backbone.preprocess.model_dump(mode="json"))


def cell_of(
    protocol: Protocol,
    task: TaskDeclaration,
    backbone: str,
    seed: int,
    fingerprints: Mapping[str, str],
) -> Cell:
    """The cell that a record is of."""
    return Cell(
        backbone=backbone,
        seed=seed,
        protocol=protocol.name,
        dataset=task.name,
        world=task.world,
        task_version=task.task_version,
        cell_fingerprint=cell_fingerprint(dict(fingerprints)),
    )
