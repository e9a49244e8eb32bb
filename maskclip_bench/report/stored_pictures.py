"""Predictions beside the truth that a dense job drew and its record names.

A record names a list of them for each split, `details.pictures.{split}`, as a path below the
workspace. Paths come from files, so nothing outside of the workspace is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from maskclip_bench import storage
from maskclip_bench.data.images import decode
from maskclip_bench.errors import DataError
from maskclip_bench.results.records import Record
from maskclip_bench.runtime import Workspace

logger = logging.getLogger(__name__)

MAX_WIDTH = 720
FOLDER = "pictures/dense"


@dataclass(frozen=True)
class StoredPicture:
    """One picture: truth on the left, prediction on the right.

    Attributes:
        split: The data set's own name of the split.
        sample_id: Of the image.
        path: Its file.
    """

    split: str
    sample_id: str
    path: Path


def stored_pictures(record: Record, workspace: Workspace | None) -> list[StoredPicture]:
    """The pictures that a record names and that are here."""
    lists = record.details.get("pictures")
    if workspace is None or not isinstance(lists, dict):
        return []
    found: list[StoredPicture] = []
    for split, name in lists.items():
        path = _inside(workspace.root, str(name))
        if path is not None:
            found += [StoredPicture(str(split), sample, file) for sample, file in _entries(path)]
    return found


def _entries(path: Path) -> Iterator[tuple[str, Path]]:
    """(sample id, file) of a list; what cannot be read is left out."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        entries = [(str(e["sample_id"]), str(e["file"])) for e in values["pictures"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("No stored pictures of %s: %s", path, error)
        return
    for sample, name in entries:
        file = _inside(path.parent, name)
        if file is not None and file.is_file():
            yield sample, file


def _inside(root: Path, name: str) -> Path | None:
    """A path below a folder; None if it leads out of it."""
    whole = root.resolve()
    path = (whole / name).resolve()
    return path if path.is_relative_to(whole) else None


def copy_pictures(
    record: Record, workspace: Workspace | None, folder: Path
) -> list[dict[str, Any]]:
    """Put the pictures of a record into the report -> file, size, alternative text, caption.

    Args:
        record: The cell.
        workspace: Where the jobs' folders are.
        folder: Of the report.

    Raises:
        StorageError: The disk refused.
    """
    shown = []
    for number, picture in enumerate(stored_pictures(record, workspace)):
        try:
            image = decode(picture.path, what=picture.path.name)
        except DataError as error:
            logger.warning("A stored picture is left out: %s", error)
            continue
        if image.width > MAX_WIDTH:
            size = (MAX_WIDTH, max(1, round(image.height * MAX_WIDTH / image.width)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        name = f"{record.cell.protocol}__{record.cell.dataset}-{number}.webp"
        file = f"{FOLDER}/{record.row_id}/{name}"
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.atomic_file(path) as temporary:
            image.save(temporary, format="WEBP", quality=82, method=3)
        caption = f"{picture.split}/{picture.sample_id}"
        shown.append(
            {
                "file": file,
                "width": image.width,
                "height": image.height,
                "alt": f"{caption}: truth on the left, prediction on the right",
                "caption": caption,
            }
        )
    return shown
