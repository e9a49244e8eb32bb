"""What the pretraining of a row cost, from its run and its weights on this machine.

| cost | from |
| --- | --- |
| gpu_hours | the logged speed, times the devices that the finished model names; only of GPUs |
| images_seen | image-text pairs of a step, times the last logged step |
| parameters | shapes in the file of the weights, of the image encoder |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError, safe_open

from maskclip_bench import storage
from maskclip_bench.backbones import weights_folder
from maskclip_bench.errors import DataError, MaskCLIPBenchError
from maskclip_bench.report.runs import Run, read_runs
from maskclip_bench.report.selection import ReportRow
from maskclip_bench.runtime import MODEL_FOLDER, PROVENANCE_FILE, Workspace

if TYPE_CHECKING:
    from maskclip_bench.results.suite_figures import Cost

WEIGHTS_FILE = "open_clip_model.safetensors"
IMAGE_ENCODER = "visual."
"""Prefix of the image encoder's weights in open_clip's format."""


@dataclass(frozen=True)
class RowCost:
    """Costs of a row; None where this machine does not know one.

    Attributes:
        gpu_hours: Hours in training steps, times GPUs.
        images_seen: Image-text pairs; 0 of a row that is not pretrained.
        parameters: Of the image encoder.
    """

    gpu_hours: float | None = None
    images_seen: float | None = None
    parameters: float | None = None


KINDS = tuple(field.name for field in fields(RowCost))


def costs_of(rows: Sequence[ReportRow], workspace: Workspace) -> dict[str, RowCost]:
    """Backbone -> what is known of its cost, of its first recorded seed.

    Args:
        rows: As a report selects them.
        workspace: Where runs and weights are.
    """
    runs = {run.row.backbone: run for run in read_runs(rows, workspace)}
    found = {}
    for row in rows:
        run = runs.get(row.backbone)
        pairs = None if run is None else run.num_pairs
        if getattr(getattr(row.declaration, "source", None), "random_init", False):
            pairs = 0
        hours = None if run is None else _gpu_hours(run, workspace)
        found[row.backbone] = RowCost(hours, pairs, _parameters(row, workspace))
    return found


def choose_costs(
    found: Mapping[str, RowCost], kind: str | None = None
) -> tuple[Cost, dict[str, float]]:
    """One kind of cost that is known of all rows: its name, and backbone -> cost.

    Args:
        found: From `costs_of`.
        kind: One of `KINDS`; None takes the first that is known of all.

    Raises:
        DataError: It is not known of some row; says of which.
    """
    wanted = KINDS if kind is None else (kind,)
    unknown = {}
    for name in wanted:
        values = {row: getattr(cost, name) for row, cost in found.items()}
        missing = [row for row, value in values.items() if value is None]
        if not missing:
            return cast("Cost", name), values
        unknown[name] = missing
    listed = "; ".join(f"{name} of {', '.join(rows)}" for name, rows in unknown.items())
    raise DataError(
        f"This machine does not know {listed}. Give a CSV with the cost of each row (--costs), or "
        "choose rows that were pretrained here (--backbone)."
    )


def _gpu_hours(run: Run, workspace: Workspace) -> float | None:
    """From the logged speed; None without a GPU, or where the number of devices is not recorded."""
    folder = workspace.pretraining(run.recipe, run.seed)
    made: Any = storage.read_object(folder / MODEL_FOLDER / PROVENANCE_FILE) or {}
    hardware, devices = made.get("hardware"), made.get("num_devices")
    on_gpu = isinstance(hardware, dict) and "gpu" in hardware
    if not on_gpu or not isinstance(devices, int) or run.seconds is None:
        return None
    return devices * run.seconds / 3600


def _parameters(row: ReportRow, workspace: Workspace) -> int | None:
    """Numbers in the tensors of the image encoder; nothing is loaded."""
    if row.declaration is None:
        return None
    try:
        folder = weights_folder(row.declaration, workspace, row.seeds[0])
        return None if folder is None else _count(folder / WEIGHTS_FILE)
    except (MaskCLIPBenchError, OSError, SafetensorError):
        return None


def _count(path: Path) -> int | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="numpy") as file:
        keys = file.keys()  # it is no mapping
        names = [name for name in keys if name.startswith(IMAGE_ENCODER)]
        total = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total or None
