"""A cell of the table: a row, a column, and hashes of all that its number depends on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maskclip_bench import storage
from maskclip_bench.backbones import BackboneDeclaration, weights_folder
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.progress import Unit
from maskclip_bench.results.records import Cell, Record
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.protocols.base import Protocol, cell_fingerprint


@dataclass(frozen=True)
class Row:
    """A backbone with the seed of its pretraining (0 for weights from elsewhere)."""

    name: str
    declaration: BackboneDeclaration
    seed: int = 0

    @property
    def can_be_made(self) -> bool:
        """Whether its weights take only minutes to make: a recipe of the demo world."""
        return self.declaration.world == "demo" and self.declaration.source.made_here

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
        refused: Why it cannot be measured here, for a cell that was asked for by name.
    """

    row: Row
    column: Column
    recorded: Record | None
    refused: MaskCLIPBenchError | None = None

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


def weights_identity(row: Row, workspace: Workspace) -> str:
    """What says, without loading them, that a row's weights are still the same.

    For a folder of weights the hash of the weights files; for a model of a zoo its name there.
    """
    declaration = row.declaration
    identity: list[object] = [declaration.source.model_dump(mode="json"), row.seed]
    folder = weights_folder(declaration, workspace, row.seed)
    if folder is not None and folder.is_dir() and not declaration.source.random_init:
        identity += [
            storage.sha256_file(path)
            for path in sorted(folder.iterdir())
            if path.suffix in (".safetensors", ".bin")
        ]
    return storage.fingerprint(identity)


def fingerprints_of(
    row: Row, column: Column, workspace: Workspace, *, weights: str
) -> dict[str, str]:
    """Hashes of all that a cell's number depends on, by part.

    Raises:
        DataError: The data is missing or broken.
        ConfigError: The settings do not fit.
    """
    return {
        "weights": weights,
        "preprocess": preprocess_fingerprint(row),
        **column.protocol.cell_fingerprints(column.declaration, row.declaration, workspace),
    }


def preprocess_fingerprint(row: Row) -> str:
    """Hash of what the row declares of its preprocessing."""
    return storage.fingerprint(row.declaration.preprocess.model_dump(mode="json"))


def identity_of_cell(row: Row, column: Column, fingerprints: dict[str, str]) -> Cell:
    """The cell that a record is of."""
    return Cell(
        backbone=row.name,
        seed=row.seed,
        protocol=column.protocol.name,
        dataset=column.declaration.name,
        world=column.declaration.world,
        task_version=column.declaration.task_version,
        cell_fingerprint=cell_fingerprint(fingerprints),
    )
