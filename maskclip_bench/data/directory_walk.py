"""One way to list the images below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


def list_images(folder: Path) -> Iterator[tuple[Path, int]]:
    """(path below `folder`, bytes) of all images, sorted by name, folder by folder."""

    def walk(current: str, prefix: str) -> Iterator[tuple[Path, int]]:
        with os.scandir(current) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(entry.path, f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                yield Path(prefix + entry.name), entry.stat().st_size

    return walk(str(folder), "")


def list_files(root: Path) -> list[tuple[Path, int]]:
    """(path below `root`, bytes) of all files, sorted by name."""
    return [
        (path.relative_to(root), path.stat().st_size)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]


def file_size(path: Path) -> int:
    """Bytes of a file, -1 if it is not there (it is then reported when it is read)."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
