"""How fast images go through a row on this machine, as measured.

Every pass of images through a row is noted in `throughput.json` of the workspace: images a second,
numbers an image, peak memory. `tasks.estimate` says from it what a run will take.
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
