"""Class lists: which folder, mask value or label is which class, and what it is called."""

from __future__ import annotations

import json
from pathlib import Path

from maskclip_bench.errors import DataError

IMAGENET_CLASSES = "imagenet-1k"
"""Value of `classes` for ImageNet's 1,000 WordNet ids in their usual order (timm ships them)."""

FOLDER_IS_INDEX = "index"
"""Value of `classes` for folders named 0, 1, 2... (ImageNet-V2)."""


def classes_of(
    classes: str | None, class_field: str, root: Path, present: list[str]
) -> tuple[dict[str, int], list[str]]:
    """Folder name -> index, and names in index order."""
    if classes is None:
        return {name: index for index, name in enumerate(present)}, present
    if classes == FOLDER_IS_INDEX:
        if not all(name.isdecimal() for name in present):
            wrong = next(name for name in present if not name.isdecimal())
            raise DataError(f"{root}: the folder {wrong!r} is no class index (classes: index).")
        indices = {name: int(name) for name in present}
        return indices, [str(i) for i in range(max(indices.values(), default=-1) + 1)]
    if classes == IMAGENET_CLASSES:
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo(IMAGENET_CLASSES)
        descriptions = [info.index_to_description(i) for i in range(info.num_classes())]
        return {synset: i for i, synset in enumerate(info.label_names())}, descriptions
    folders, names = read_class_list(root / classes, field=class_field)
    return {folder: i for i, folder in enumerate(folders)}, names


def read_class_list(path: Path, *, field: str = "name") -> tuple[list[str], list[str]]:
    """Read a class list -> (folder names, class names), in index order.

    Args:
        path: The file.
        field: Key of the class's words, where the list holds objects.

    Raises:
        DataError: The file is missing or is no class list.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
            return [line[0] for line in lines], [line[-1] for line in lines]
        entries = json.loads(text)
        if entries and isinstance(entries[0], str):
            return list(entries), list(entries)
        names = [str(entry[field]) for entry in entries]
        return [str(entry.get("wnid", entry["name"])) for entry in entries], names
    except FileNotFoundError:
        raise DataError(f"No class list {path}. Unpack the data set again.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no class list ({type(error).__name__}: {error}). It should be a JSON list "
            "of names or of objects with `wnid` and `name`, or text with one `folder name` a line."
        ) from None
