"""What a run will take: minutes, bytes and memory, from passes measured on this machine before.

The passes that open cells need are added up, each split once a row; afterwards the run says what
they took. Images are counted as a data set declares them, else in its files; where neither is
there, the sum says so. Time of protocols and of cells that train is not in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.cost import Pass, read_throughput
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.protocols.base import open_split

if TYPE_CHECKING:
    from maskclip_bench.tasks.cell import PlannedCell

logger = logging.getLogger(__name__)


@dataclass
class Estimate:
    """What the open cells of a plan need.

    Attributes:
        num_images: Images to pass, each split once a row; without those of `uncounted`.
        seconds: Time of the passes whose rows were measured before.
        num_bytes: Features to store, likewise.
        memory_bytes: Largest of their peaks.
        unknown: Rows that were not measured on this machine yet, with their images.
        uncounted: Data sets whose number of images is neither declared nor found.
        num_trained: Cells that train, whose time is not foretold.
    """

    num_images: int = 0
    seconds: float = 0.0
    num_bytes: int = 0
    memory_bytes: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    uncounted: set[str] = field(default_factory=set)
    num_trained: int = 0

    def sentence(self) -> str:
        """For people; empty where there is nothing to pass."""
        parts = [f"{self.num_images:,} images to pass"] if self.num_images else []
        if self.uncounted:
            names = _first_three(self.uncounted)
            before = f"{parts.pop()}, and" if parts else "images to pass:"
            parts = [f"{before} those of {names}, whose number is known when they are read"]
        if self.num_images > sum(self.unknown.values()):
            parts.append(
                f"about {_time(self.seconds)}, {self.num_bytes / 1e6:,.0f} MB of features, "
                f"{self.memory_bytes / 1e9:,.1f} GB of memory"
            )
        if self.unknown:
            parts.append(
                f"no throughput measured yet on this machine for {_first_three(self.unknown)}"
            )
        if parts and self.num_trained:
            parts.append(f"{self.num_trained} cells train, whose time is not in it")
        return "; ".join(parts)


def _first_three(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")


def estimate(
    cells: Iterable[PlannedCell],
    workspace: Workspace,
    *,
    device: str,
    precision: str = "float32",
    limit: int | None = None,
) -> Estimate:
    """Add up the passes that cells need.

    Args:
        cells: Those to measure.
        workspace: Where throughput was noted, and where the data is.
        device: Kind of device (`device_kind`).
        precision: Of the forward passes.
        limit: At most this many images of each split.
    """
    measured, total = read_throughput(workspace), Estimate()
    passes: dict[tuple[str, int, str, str], int] = {}
    for cell in cells:
        if cell.column.protocol.runs_as_job:
            total.num_trained += 1
            continue
        task = cell.column.declaration
        splits = ("test",) if cell.column.protocol.needs_text else tuple(task.splits)
        for split in splits:
            number = num_images(task, split, workspace)
            if number is None:
                total.uncounted.add(task.name)
                continue
            key = (cell.row.name, cell.row.seed, task.reader.root, task.splits[split])  # type: ignore[index]
            passes[key] = number if limit is None else min(limit, number)
    for (row, _, _, _), number in passes.items():
        total.num_images += number
        known = measured.get(f"{row} {precision} {device}")
        if known is None or not known.num_images:
            total.unknown[row] = total.unknown.get(row, 0) + number
            continue
        total.seconds += number * known.seconds / known.num_images
        total.num_bytes += number * known.bytes_per_image
        total.memory_bytes = max(total.memory_bytes, known.memory_bytes)
    return total


def num_images(task: TaskDeclaration, split: str, workspace: Workspace) -> int | None:
    """Images of a split as declared, else as found; None where neither is known.

    Data that is not there yet, or broken, is not known; measuring it says what is wrong.
    """
    declared = task.counts.get(split)  # type: ignore[call-overload]
    if declared is not None:
        return int(declared)
    try:
        return len(open_split(task, split, workspace))
    except (MaskCLIPBenchError, OSError):
        logger.debug("%s (%s) cannot be counted", task.name, split, exc_info=True)
        return None


def _time(seconds: float) -> str:
    """Minutes, or seconds where that says more."""
    if seconds < 1:
        return "less than 1 s"
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:,.1f} min"


def truth(passes: Iterable[Pass], expected: Estimate) -> str:
    """What the passes took, beside what was expected; empty where there were none."""
    found = list(passes)
    number, seconds = sum(p.num_images for p in found), sum(p.seconds for p in found)
    if not number:
        return ""
    size = sum(p.num_images * p.bytes_per_image for p in found)
    text = (
        f"Passed {number:,} images in {_time(seconds)} ({number / max(seconds, 1e-9):,.0f} "
        f"a second), {size / 1e6:,.0f} MB of features"
    )
    if expected.seconds:
        text += f"; expected were {_time(expected.seconds)}, {expected.num_bytes / 1e6:,.0f} MB"
    return text + "."
