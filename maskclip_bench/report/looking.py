"""Which models and images the pictures are of; the models themselves are run in `seeing`.

Pictures are made where torch, weights and data are here, and kept in the report's folder. Later the
same folder shows them wherever it is made again, as long as the weights are those of the records.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip_bench import storage
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.errors import CheckpointError, MaskCLIPBenchError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.report.selection import ReportRow, Selection
from maskclip_bench.results.records import row_id
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration, data_available

if TYPE_CHECKING:
    from maskclip_bench.backbones.loading import Backbone
    from maskclip_bench.report.seeing.look import RowToSee
    from maskclip_bench.report.seeing.scenes import Scenes

logger = logging.getLogger(__name__)

SEEN = "pictures/seen.json"
RETRIEVED = "pictures/retrieval.json"
RETRIEVAL = "retrieval"


def has_torch() -> bool:
    """Whether models can be run here."""
    try:
        return importlib.util.find_spec("torch") is not None
    except (ImportError, ValueError):
        return False


def make_pictures(
    selection: Selection,
    workspace: Workspace,
    folder: Path,
    *,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> None:
    """Run the models of the rows and write what they see and retrieve; what is there is kept.

    What is missing on this machine (weights, data) leaves a picture out, with a line in the log.

    Args:
        selection: Rows and tasks.
        workspace: Where data and weights are.
        folder: Of the report.
        device: Where models run.
        progress: Told of what takes time.

    Raises:
        StorageError: The disk refused.
    """
    from maskclip_bench.report.seeing.look import look
    from maskclip_bench.report.seeing.retrieval import retrieve

    rows = rows_to_see(selection, workspace, device=device)
    scenes = scenes_of(selection, workspace)
    if rows and scenes is not None:
        base = next((r for r in selection.rows if r.backbone == selection.baseline), None)
        baseline = None if base is None else row_id(base.backbone, base.seeds[0])
        look(rows, scenes, folder, baseline=baseline, progress=progress)
    task = _task_with(selection, RETRIEVAL, workspace)
    if rows and task is not None:
        try:
            retrieve(rows, task, workspace, folder, progress=progress)
        except MaskCLIPBenchError as error:
            logger.warning("No retrieved pictures in the report: %s", error)


def rows_to_see(
    selection: Selection, workspace: Workspace, *, device: str = "cpu", seed: int | None = None
) -> list[RowToSee]:
    """The rows that can be loaded here; each refuses to load weights that were not measured.

    Args:
        selection: Rows and records.
        workspace: Where weights are.
        device: Where models run.
        seed: Of the weights; None takes the first recorded one of each row.
    """
    from maskclip_bench.backbones import missing_weights
    from maskclip_bench.report.seeing.look import RowToSee

    found = []
    for row in selection.rows:
        chosen = row.seeds[0] if seed is None else seed
        identity = recorded_weights(selection, row, chosen)
        declaration = row.declaration
        if declaration is None or identity is None:
            continue
        try:
            missing = missing_weights(declaration, workspace, chosen)
        except MaskCLIPBenchError as error:
            missing = str(error)
        if missing is not None:
            logger.info("%s is not looked through: %s", row.label, missing)
            continue
        found.append(
            RowToSee(
                row_id=row_id(row.backbone, chosen),
                label=row.label,
                identity=identity,
                load=_Loader(declaration, chosen, workspace, device, identity),
            )
        )
    return found


class _Loader:
    """Loads a row, and refuses weights that are not those of its records."""

    def __init__(
        self,
        declaration: BackboneDeclaration,
        seed: int,
        workspace: Workspace,
        device: str,
        identity: str,
    ) -> None:
        self.declaration = declaration
        self.seed = seed
        self.workspace = workspace
        self.device = device
        self.identity = identity

    def __call__(self) -> Backbone:
        from maskclip_bench.backbones import load_backbone

        backbone = load_backbone(
            self.declaration, workspace=self.workspace, seed=self.seed, device=self.device
        )
        if backbone.identity != self.identity:
            raise CheckpointError(
                f"The weights of {backbone.row_id} here ({backbone.identity}) are not those that "
                f"were measured ({self.identity}), so no picture is made of them. Measure the row "
                "again: maskclip-bench run"
            )
        return backbone


def recorded_weights(selection: Selection, row: ReportRow, seed: int | None = None) -> str | None:
    """Identity of the weights that a row's records are of; None where they say none, or differ.

    Args:
        selection: Rows and records.
        row: Which row.
        seed: Which of its seeds; None is the first.
    """
    chosen = row.seeds[0] if seed is None else seed
    found = {
        record.fingerprints["weights"]
        for task in selection.tasks
        for found_seed, record in selection.ok(row.backbone, task).items()
        if found_seed == chosen and "weights" in record.fingerprints
    }
    return found.pop() if len(found) == 1 else None


def scenes_of(selection: Selection, workspace: Workspace) -> Scenes | None:
    """Images of the first data set with masks, else of the first whose files are here."""
    from maskclip_bench.report.seeing.scenes import (
        has_masks,
        scenes_of_task,
        scenes_without_masks,
    )

    here = [task for task in _datasets(selection) if data_available(task, workspace)]
    masked = [task for task in here if has_masks(task)]
    try:
        if masked:
            return scenes_of_task(masked[0], workspace)
        return scenes_without_masks(here[0], workspace) if here else None
    except MaskCLIPBenchError as error:
        logger.warning("No pictures of what models see in the report: %s", error)
        return None


def _datasets(selection: Selection) -> list[TaskDeclaration]:
    """Declarations in the order of the tasks."""
    names = dict.fromkeys(task.partition("/")[2] for task in selection.tasks)
    return [selection.datasets[name] for name in names if name in selection.datasets]


def _task_with(selection: Selection, protocol: str, workspace: Workspace) -> TaskDeclaration | None:
    """The first data set that is recorded under a protocol and whose files are here."""
    for task in selection.tasks:
        name, _, dataset = task.partition("/")
        found = selection.datasets.get(dataset)
        if name == protocol and found is not None and data_available(found, workspace):
            return found
    return None


def kept_pictures(selection: Selection, folder: Path, file: str) -> dict[str, Any] | None:
    """A list of pictures in the folder, with the rows whose records are of the same weights.

    Args:
        selection: Rows and records.
        folder: Of the report.
        file: `SEEN` or `RETRIEVED`.
    """
    found = storage.read_object(folder / file)
    if found is None:
        return None
    weights = found.get("weights", {})
    same = {
        name
        for row in selection.rows
        if weights.get(name := row_id(row.backbone, row.seeds[0]), "")
        == recorded_weights(selection, row)
    }
    for part in ("rows", "answers"):
        if part in found:
            found[part] = {name: value for name, value in found[part].items() if name in same}
    return found
