"""Small pictures of a data set's images, all in one file, so that a page can show any of them.

A page of 1,890 images would otherwise be 1,890 files. The place of an image in the file is its
number; CSS shows one square of it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from maskclip_bench import storage
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration, data_available
from maskclip_bench.tasks.protocols.base import evenly_spaced, open_split

logger = logging.getLogger(__name__)

TILE = 64
MAX_IMAGES = 2_000
"""Of a sheet; of larger data sets evenly spaced images have a picture."""
PAPER = (238, 240, 243)


@dataclass(frozen=True)
class Sheet:
    """Pictures of images side by side in one file.

    Attributes:
        file: Below the report's folder.
        columns: Pictures in a line.
        rows: Lines.
        tile: Side of a picture.
        place: Sample id -> number of its picture.
    """

    file: str
    columns: int
    rows: int
    tile: int
    place: dict[str, int]

    def style(self, sample_id: str, *, size: int, up: str = "") -> str | None:
        """CSS that shows one picture at a size; None if it has none.

        Args:
            sample_id: Which image.
            size: Side in pixels.
            up: Path from the page to the report's folder ("../../").
        """
        number = self.place.get(sample_id)
        if number is None:
            return None
        row, column = divmod(number, self.columns)
        return (
            f"width:{size}px;height:{size}px;background-image:url('{up}{self.file}');"
            f"background-size:{self.columns * size}px {self.rows * size}px;"
            f"background-position:-{column * size}px -{row * size}px"
        )

    def to_json(self) -> dict[str, Any]:
        """For the page's script, without the places."""
        return {"file": self.file, "columns": self.columns, "rows": self.rows}


def write_sheet(
    images: Sequence[Image.Image], ids: Sequence[str], folder: Path, file: str, *, tile: int = TILE
) -> Sheet:
    """Put images on a sheet, whole and centred, and write it.

    Raises:
        StorageError: The disk refused.
    """
    sheet = _layout(ids, file, tile)
    canvas = Image.new("RGB", (sheet.columns * tile, sheet.rows * tile), PAPER)
    for number, image in enumerate(images):
        row, column = divmod(number, sheet.columns)
        fitted = ImageOps.pad(image, (tile, tile), Image.Resampling.BICUBIC, color=PAPER)
        canvas.paste(fitted, (column * tile, row * tile))
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_file(path) as temporary:
        canvas.save(temporary, format="WEBP", quality=72, method=2)
    return sheet


def _layout(ids: Sequence[str], file: str, tile: int) -> Sheet:
    columns = max(1, round(len(ids) ** 0.5))
    rows = max(1, -(-len(ids) // columns))
    return Sheet(file, columns, rows, tile, {name: number for number, name in enumerate(ids)})


@dataclass
class Gallery:
    """The data sets of a report, opened when first asked for, with their sheets.

    Attributes:
        datasets: Declarations by name.
        workspace: Where their files are; None = show no image.
        folder: Of the report.
        progress: Told of the sheets.
    """

    datasets: dict[str, TaskDeclaration]
    workspace: Workspace | None
    folder: Path
    progress: Progress = no_progress
    _opened: dict[str, Dataset | None] = field(default_factory=dict)
    _sheets: dict[str, Sheet | None] = field(default_factory=dict)

    def dataset(self, name: str) -> Dataset | None:
        """The test split; None if it is not on this machine."""
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _open(self, name: str) -> Dataset | None:
        task = self.datasets.get(name)
        if task is None or self.workspace is None:
            return None
        try:
            if not data_available(task, self.workspace):
                return None
            return open_split(task, "test", self.workspace)
        except MaskCLIPBenchError as error:
            logger.warning("No images of %s in the report: %s", name, error)
            return None

    def sheet(self, name: str) -> Sheet | None:
        """Small pictures of the test split; None without its files."""
        if name not in self._sheets:
            self._sheets[name] = self._make(name)
        return self._sheets[name]

    def _make(self, name: str) -> Sheet | None:
        dataset = self.dataset(name)
        if dataset is None:
            return None
        chosen = evenly_spaced(len(dataset), MAX_IMAGES)
        ids = [dataset.sample_ids[index] for index in chosen]
        try:
            file = f"pictures/images/{name}-{dataset.fingerprint}.webp"
            if (self.folder / file).is_file():
                return _layout(ids, file, TILE)
            images = []
            for done, index in enumerate(chosen):
                image = dataset.image(index)
                image.thumbnail((2 * TILE, 2 * TILE))
                images.append(image)
                self.progress(f"pictures of {name}", done + 1, len(chosen))
            return write_sheet(images, ids, self.folder, file)
        except MaskCLIPBenchError as error:
            logger.warning("No images of %s in the report: %s", name, error)
            return None

    @cached_property
    def class_names(self) -> _ClassNames:
        """Names of the classes of each data set."""
        return _ClassNames(self)


class _ClassNames(dict[str, "list[str] | None"]):
    """Data set -> names of its classes by index; None if nobody says them here."""

    def __init__(self, gallery: Gallery) -> None:
        super().__init__()
        self.gallery = gallery

    def __missing__(self, name: str) -> list[str] | None:
        task = self.gallery.datasets.get(name)
        names: list[str] | None = None
        if task is not None and isinstance(task.class_names.names, list):
            names = [n if isinstance(n, str) else n[0] for n in task.class_names.names]
        elif (dataset := self.gallery.dataset(name)) is not None and dataset.class_names:
            names = list(dataset.class_names)
        self[name] = names
        return names


def image_id(sample_id: str, split: str | None = None) -> str:
    """The id of the image that an outcome row is of.

    Retrieval writes "image:ID" and "text:7:ID", dense protocols "SPLIT/ID".

    Args:
        sample_id: Of the outcome row.
        split: The data set's own name of the test split.

    Example:
        >>> image_id("text:7:a/b.jpg")
        'a/b.jpg'
    """
    if sample_id.startswith("image:"):
        return sample_id.removeprefix("image:")
    if sample_id.startswith("text:"):
        return sample_id.split(":", 2)[-1]
    if split and sample_id.startswith(f"{split}/"):
        return sample_id.removeprefix(f"{split}/")
    return sample_id
