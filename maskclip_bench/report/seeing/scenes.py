"""The images that models are looked at with: from a segmentation data set, or files of the user.

Numbers come from all of them, pictures are drawn of a few. Masks give the classes of patches;
without masks there are pictures and no numbers.

H x W pixels, C classes, g patches along a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskclip_bench.data.images import decode
from maskclip_bench.data.masks import UNLABELLED, class_shares, read_mask
from maskclip_bench.errors import DataError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.protocols.base import evenly_spaced, open_split

NUM_IMAGES = 96
"""Images behind each number."""
NUM_SHOWN = 8
"""Images that are drawn."""
MIN_OBJECT = 0.01
"""Smallest share of an image that an object takes to be asked for by its name."""
THING = "thing"


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images with what is known of them.

    Attributes:
        name: Of the data set, or "own images".
        ids: One an image.
        images: RGB, decoded.
        masks: Labels [H, W], 0 to C - 1 and 255 for unlabelled; None without masks.
        class_names: Names of the classes.
        kinds: "thing" or "stuff" of each class, where the data set says it.
        tiles: Windows along a side in which an image is read (see `patch_segmentation`).
        fingerprint: Of the data.
    """

    name: str
    ids: list[str]
    images: list[Image.Image]
    masks: list[NDArray[np.uint8]] | None
    class_names: list[str]
    kinds: list[str] | None
    tiles: int
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def things(self) -> NDArray[np.bool_]:
        """Whether each class is one of objects, [C]; all are where the data set does not say."""
        if self.kinds is None:
            return np.ones(len(self.class_names), dtype=bool)
        return np.array([kind == THING for kind in self.kinds])

    @cached_property
    def shown(self) -> list[int]:
        """Indices of the images that are drawn: those with the most classes of objects first."""
        if self.masks is None:
            return list(range(min(NUM_SHOWN, len(self))))
        variety = [len(self.objects(index)) for index in range(len(self))]
        order = sorted(range(len(self)), key=lambda index: (-variety[index], index))
        return sorted(order[:NUM_SHOWN])

    def objects(self, index: int) -> list[int]:
        """Classes of objects in an image that are large enough to be pointed at, largest first."""
        if self.masks is None:
            return []
        mask = self.masks[index]
        known = mask[mask != UNLABELLED]
        shares = np.bincount(known, minlength=len(self.class_names)) / mask.size
        found = [int(c) for c in np.argsort(-shares, kind="stable") if shares[c] >= MIN_OBJECT]
        return [c for c in found if self.things[c]]

    def patch_classes(self, index: int, grid: int) -> NDArray[np.int64]:
        """The class that covers more than half of each patch, [g * g]; -1 where none does."""
        if self.masks is None:
            return np.full(grid * grid, -1, dtype=np.int64)
        shares = class_shares(self.masks[index], len(self.class_names), grid)  # [g * g, C]
        best: NDArray[np.int64] = np.where(shares.max(1) > 0.5, shares.argmax(1), -1)
        return best


def scenes_of_task(
    task: TaskDeclaration, workspace: Workspace, *, num_images: int = NUM_IMAGES
) -> Scenes:
    """Evenly spaced test images of a data set with masks.

    Args:
        task: A data set whose reader gives a mask an image.
        workspace: Where its files are.
        num_images: At most this many.

    Raises:
        DataError: The data is missing or broken, or it has no masks with declared classes.
    """
    from maskclip_bench.data.readers import root_of
    from maskclip_bench.tasks.protocols.segmentation import class_list

    dataset = open_split(task, "test", workspace)
    listed = getattr(task.reader, "classes", None)
    names, kinds = (
        class_list(root_of(task.reader, workspace.data) / listed) if listed else (None, None)
    )
    declared = task.class_names.names
    if isinstance(declared, list):
        names = [name if isinstance(name, str) else name[0] for name in declared]
    if names is None or len(dataset.annotations) != len(dataset):
        raise DataError(
            f"{task.name} has no mask an image with declared classes. Name a data set for "
            "segmentation; see: maskclip-bench list tasks"
        )
    chosen = evenly_spaced(len(dataset), num_images)
    settings = next((v for v in task.protocols.values() if "tiles" in v), {})
    return Scenes(
        name=task.name,
        ids=[dataset.sample_ids[index] for index in chosen],
        images=[dataset.image(index) for index in chosen],
        masks=[read_mask(dataset.annotations[i], num_classes=len(names)) for i in chosen],
        class_names=names,
        kinds=kinds,
        tiles=int(settings.get("tiles", 2)),
        fingerprint=f"{dataset.fingerprint}/{num_images}",
    )


def scenes_without_masks(
    task: TaskDeclaration, workspace: Workspace, *, num_images: int = NUM_SHOWN
) -> Scenes:
    """Evenly spaced test images of any data set: pictures, and no numbers.

    Raises:
        DataError: The data is missing or broken.
    """
    dataset = open_split(task, "test", workspace)
    chosen = evenly_spaced(len(dataset), num_images)
    return Scenes(
        name=task.name,
        ids=[dataset.sample_ids[index] for index in chosen],
        images=[dataset.image(index) for index in chosen],
        masks=None,
        class_names=[],
        kinds=None,
        tiles=1,
        fingerprint=f"{dataset.fingerprint}/{num_images}",
    )


def scenes_of_files(paths: Sequence[Path], *, tiles: int = 1) -> Scenes:
    """Images that the user names; no masks, so no numbers.

    Raises:
        DataError: One cannot be read.
    """
    return Scenes(
        name="own images",
        ids=[path.name for path in paths],
        images=[decode(path, what=str(path)) for path in paths],
        masks=None,
        class_names=[],
        kinds=None,
        tiles=tiles,
    )


def has_masks(task: TaskDeclaration) -> bool:
    """Whether a data set is one whose patches can be named: it has a patch protocol."""
    return any(name.endswith("_segmentation") for name in task.protocols)
