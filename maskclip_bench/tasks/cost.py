"""What a run will take: minutes, bytes and memory, from passes measured on this machine before.

Every pass of images through a row is noted in `throughput.json` of the workspace: images a second,
numbers an image, peak memory. A plan adds up the passes that its open cells need, each split once a
row; afterwards the run says what they took. Time of protocols and of cells that train is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from maskclip_bench import storage
from maskclip_bench.runtime import Workspace, device_kind, peak_memory

if TYPE_CHECKING:
    from maskclip_bench.backbones import Backbone
    from maskclip_bench.tasks.cell import PlannedCell

FILE = "throughput.json"


@dataclass(frozen=True)
class Pass:
    """Images that went through a row.

    Attributes:
        row: Name of the row.
        device: Kind of device, "cpu" or the name of a GPU.
        precision: Of the forward pass.
        num_images: How many.
        seconds: How long, decoding included.
        bytes_per_image: Of the features that are stored.
        memory_bytes: Peak on the device, or of the process on a CPU.
    """

    row: str
    device: str
    precision: str
    num_images: int
    seconds: float
    bytes_per_image: int
    memory_bytes: int

    @property
    def key(self) -> str:
        """What the throughput depends on."""
        return f"{self.row} {self.precision} {self.device}"


@dataclass
class Estimate:
    """What the open cells of a plan need.

    Attributes:
        num_images: Images to pass, each split once a row.
        seconds: Time of the passes whose rows were measured before.
        num_bytes: Features to store, likewise.
        memory_bytes: Largest of their peaks.
        unknown: Rows that were not measured on this machine yet, with their images.
        num_trained: Cells that train, whose time is not foretold.
    """

    num_images: int = 0
    seconds: float = 0.0
    num_bytes: int = 0
    memory_bytes: int = 0
    unknown: dict[str, int] | None = None
    num_trained: int = 0

    def sentence(self) -> str:
        """For people; empty where there is nothing to pass."""
        if not self.num_images:
            return ""
        known = self.num_images - sum((self.unknown or {}).values())
        parts = [f"{self.num_images:,} images to pass"]
        if known:
            parts.append(
                f"about {self.seconds / 60:,.1f} min, {self.num_bytes / 1e6:,.0f} MB of features, "
                f"{self.memory_bytes / 1e9:,.1f} GB of memory"
            )
        if self.unknown:
            rows = ", ".join(sorted(self.unknown)[:3]) + (", ..." if len(self.unknown) > 3 else "")
            parts.append(f"no throughput measured yet on this machine for {rows}")
        if self.num_trained:
            parts.append(f"{self.num_trained} cells train, whose time is not in it")
        return "; ".join(parts)


def pass_of(backbone: Backbone, num_images: int, seconds: float, bytes_per_image: int) -> Pass:
    """The note of a pass that just ended."""
    return Pass(
        row=backbone.name,
        device=device_kind(backbone.device),
        precision=backbone.precision,
        num_images=num_images,
        seconds=seconds,
        bytes_per_image=bytes_per_image,
        memory_bytes=peak_memory(backbone.device),
    )


def read_throughput(workspace: Workspace) -> dict[str, Pass]:
    """Key -> the last pass noted; what is damaged counts as nothing."""
    try:
        content = json.loads((workspace.root / FILE).read_text(encoding="utf-8"))
        return {key: Pass(**value) for key, value in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def note_passes(passes: Iterable[Pass], workspace: Workspace) -> None:
    """Keep the throughput of passes, those of a row added up.

    Raises:
        StorageError: The disk refused.
    """
    added: dict[str, Pass] = {}
    for found in passes:
        before = added.get(found.key)
        if before is None:
            added[found.key] = found
            continue
        added[found.key] = Pass(
            **{
                **asdict(found),
                "num_images": before.num_images + found.num_images,
                "seconds": before.seconds + found.seconds,
                "memory_bytes": max(before.memory_bytes, found.memory_bytes),
            }
        )
    if not added:
        return
    path = workspace.root / FILE
    with storage.exclusive(path):
        known = {**read_throughput(workspace), **added}
        storage.write_json(path, {key: asdict(value) for key, value in sorted(known.items())})


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
        workspace: Where throughput was noted.
        device: Kind of device (`device_kind`).
        precision: Of the forward passes.
        limit: At most this many images of each split.
    """
    measured, total = read_throughput(workspace), Estimate(unknown={})
    assert total.unknown is not None
    passes: dict[tuple[str, int, str, str], int] = {}
    for cell in cells:
        if cell.column.protocol.runs_as_job:
            total.num_trained += 1
            continue
        task = cell.column.declaration
        splits = ("test",) if cell.column.protocol.needs_text else tuple(task.splits)
        for split in splits:
            number = task.counts.get(split, 0)  # type: ignore[call-overload]
            number = number if limit is None else min(limit, number or limit)
            passes[cell.row.name, cell.row.seed, task.reader.root, task.splits[split]] = number  # type: ignore[index]
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


def truth(passes: Iterable[Pass], expected: Estimate) -> str:
    """What the passes took, beside what was expected; empty where there were none."""
    found = list(passes)
    number, seconds = sum(p.num_images for p in found), sum(p.seconds for p in found)
    if not number:
        return ""
    size = sum(p.num_images * p.bytes_per_image for p in found)
    text = (
        f"Passed {number:,} images in {seconds / 60:,.1f} min ({number / max(seconds, 1e-9):,.0f} "
        f"a second), {size / 1e6:,.0f} MB of features"
    )
    if expected.seconds:
        text += (
            f"; expected were {expected.seconds / 60:,.1f} min, {expected.num_bytes / 1e6:,.0f} MB"
        )
    return text + "."
