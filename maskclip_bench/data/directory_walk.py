"""The one way to list a folder: all readers and checks see the same files, in the same order.

- Sorted by name, folder by folder. Links to files and folders are followed.
- A dead link and a folder that cannot be listed are errors: a part of the data is not here.
- A link to a folder that contains it, a pipe, socket or device, a hidden file, and a file that is
  not wanted are left out, counted and named.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from maskclip_bench.data.images import IMAGE_LIKE, is_image_name
from maskclip_bench.data.left_over import (
    HIDDEN,
    LOOP,
    NO_IMAGE,
    NOT_DECODED,
    SPECIAL,
    LeftOver,
    readable,
    shown,
)
from maskclip_bench.errors import DataError


@dataclass(frozen=True)
class FoundFile:
    """A file below the folder that was walked.

    Attributes:
        name: Its path below that folder with `/`, as text (see `left_over.readable`).
        path: Where it is.
    """

    name: str
    path: Path


@dataclass
class Walk:
    """The wanted files of a folder, and what else is in it."""

    files: list[FoundFile] = field(default_factory=list)
    left_over: LeftOver = field(default_factory=LeftOver)


def walk_images(folder: Path) -> Walk:
    """All images below `folder`: files whose names end as those of a format that is decoded here.

    Raises:
        DataError: A link is dead, or a folder cannot be listed.
    """
    return walk_files(folder, wanted=is_image_name, other=_other_than_image)


def walk_files(
    folder: Path,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    other: Callable[[str], str] = lambda name: NO_IMAGE,
) -> Walk:
    """All files below `folder` whose names are wanted.

    Args:
        folder: The folder.
        wanted: Whether a file of this name is taken.
        other: Why a file of this name is not taken.

    Raises:
        DataError: A link is dead, or a folder cannot be listed.
    """
    walk = Walk()
    for prefix, entry, mode in _entries(folder, "", (), walk.left_over):
        name = readable(prefix + entry.name)
        if entry.name.startswith("."):
            walk.left_over.add(HIDDEN, name)
        elif not stat.S_ISREG(mode):
            walk.left_over.add(SPECIAL, name)
        elif wanted(entry.name):
            walk.files.append(FoundFile(name, Path(entry.path)))
        else:
            walk.left_over.add(other(entry.name), name)
    return walk


def list_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; hidden ones are no part of a data set.

    Raises:
        DataError: It cannot be listed.
    """
    return [
        readable(entry.name)
        for entry in _scan(folder)
        if not entry.name.startswith(".") and stat.S_ISDIR(_mode(entry))
    ]


def _entries(
    folder: Path, prefix: str, above: tuple[tuple[int, int], ...], left_over: LeftOver
) -> Iterator[tuple[str, os.DirEntry[str], int]]:
    """(path of the folder below the root, entry, mode) of all that is no folder."""
    status = _status(folder)
    inside = (*above, (status.st_dev, status.st_ino))
    for entry in _scan(folder):
        if entry.name.startswith(".") and entry.is_dir():
            left_over.add(HIDDEN, readable(prefix + entry.name))
            continue
        mode = 0 if entry.name.startswith(".") else _mode(entry)
        if not stat.S_ISDIR(mode):
            yield prefix, entry, mode
            continue
        path = Path(entry.path)
        found = _status(path)
        if (found.st_dev, found.st_ino) in inside:
            left_over.add(LOOP, readable(prefix + entry.name))
        else:
            yield from _entries(path, f"{prefix}{entry.name}/", inside, left_over)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"Cannot list {shown(folder)} ({error.strerror}). Check that it is there and its "
            "permissions."
        ) from None


def _mode(entry: os.DirEntry[str]) -> int:
    """Mode of what an entry is or points to; regular files need no call to the system."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    try:
        return entry.stat().st_mode
    except OSError as error:
        if entry.is_symlink():
            target = shown(Path(entry.path).readlink())
            raise DataError(
                f"{shown(entry.path)} is a link to {target}, which cannot be reached "
                f"({error.strerror}). Mount or copy what it points to, or remove the link."
            ) from None
        raise DataError(
            f"Cannot read {shown(entry.path)} ({error.strerror}). Check its permissions."
        ) from None


def _status(folder: Path) -> os.stat_result:
    try:
        return folder.stat()
    except OSError as error:
        raise DataError(
            f"Cannot list {shown(folder)} ({error.strerror}). Check that it is there and its "
            "permissions."
        ) from None


def _other_than_image(name: str) -> str:
    return NOT_DECODED if Path(name).suffix.lower() in IMAGE_LIKE else NO_IMAGE
