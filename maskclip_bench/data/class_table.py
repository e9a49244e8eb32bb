"""The classes of a data set: one table for all its splits, so that a label means one thing.

A class is what the files call it (its *key*: a folder, a mask value, a category id) and what a text
tower reads (its *name*). A label is a position in the table. The table comes from a list beside the
data, or from all splits together, never from one split: a class without images in one split keeps
its label, and so do all after it.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maskclip_bench import storage
from maskclip_bench.data.cell_values import key_of
from maskclip_bench.data.left_over import examples, shown
from maskclip_bench.data.text_files import parse_json, read_text
from maskclip_bench.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

IMAGENET_CLASSES = "imagenet-1k"
"""Value of `classes` for ImageNet's 1,000 WordNet ids in their usual order (timm ships them)."""

FOLDER_IS_INDEX = "index"
"""Value of `classes` for folders named 0, 1, 2... (ImageNet-V2)."""

MAX_CLASSES = 100_000
"""Largest table made from numbers alone; a larger index is taken for damage."""


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, in the order of their labels.

    Attributes:
        keys: What the files call each class; unique.
        names: Words for each class.
        kinds: Kind of each class ("stuff", "thing"), where the list says it.
        source: Where the table comes from, for messages.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...] | None = None
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.keys) or len(self.kinds or self.keys) != len(self.keys):
            raise DataError(
                f"{self.source}: {len(self.keys)} classes have {len(self.names)} names. Give each "
                "class one name."
            )
        repeated = [key for key, count in Counter(self.keys).items() if count > 1]
        if repeated:
            first, second = [i for i, key in enumerate(self.keys) if key == repeated[0]][:2]
            raise DataError(
                f"{self.source}: {len(repeated)} classes are listed twice, e.g. "
                f"{shown(repeated[0])!r} as class {first} and as class {second}. Remove one."
            )
        alike: dict[str, str] = {}
        for key in self.keys:
            if alike.setdefault(looks(key), key) != key:
                raise DataError(
                    f"{self.source}: {alike[looks(key)]!a} and {key!a} look the same and "
                    "would be two classes. Write both alike (spaces, composed accents)."
                )

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Key -> label."""
        return {key: index for index, key in enumerate(self.keys)}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of keys and names, in order."""
        return storage.fingerprint([self.keys, self.names, self.kinds])

    def labels_of(self, keys: Iterable[str], *, what: str, noun: str = "classes") -> list[int]:
        """The label of each key.

        Args:
            keys: What the files call the classes.
            what: Name of the data set, for messages.
            noun: What the keys are, for messages.

        Raises:
            DataError: A key is no class of the table.
        """
        found = list(keys)
        unknown = sorted({key for key in found if key not in self.index_of})
        if unknown:
            raise DataError(
                f"{what}: {len(unknown)} {noun} are no class of {self.source}, e.g. "
                f"{shown(unknown[0])!r}.{did_you_mean(unknown[0], self.keys)} "
                "Move them elsewhere, or correct the class list."
            )
        return [self.index_of[key] for key in found]


class HasClasses(Protocol):
    """A split with a class table (`data.dataset.Dataset`)."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def split(self) -> str:
        """Name of the split."""

    @property
    def classes(self) -> ClassTable | None:
        """Its classes."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The label of each image."""


def same_classes(first: HasClasses, *others: HasClasses) -> ClassTable:
    """The one table of several splits; for protocols that learn on one and test on another.

    Raises:
        DataError: A split has no classes, or other ones than the first.
    """
    for split in (first, *others):
        if split.classes is None:
            raise DataError(
                f"{split.name} ({split.split}) has no classes. Use a reader that gives labels."
            )
        if split.classes != first.classes:
            raise DataError(
                f"{first.name}: the splits {first.split} and {split.split} have other classes "
                f"({_difference(first.classes, split.classes)}), so their labels do not mean the "
                "same. Give both one class list."
            )
    _warn_of_unlearnt(first, others)
    assert first.classes is not None
    return first.classes


def _warn_of_unlearnt(first: HasClasses, others: Sequence[HasClasses]) -> None:
    """Say so where a split has classes of which the first has no image to learn from."""
    if first.labels is None or first.classes is None:
        return
    learnt = set(np.unique(first.labels).tolist())
    for split in others:
        present = set() if split.labels is None else set(np.unique(split.labels).tolist())
        missing = [first.classes.names[label] for label in sorted(present - learnt)]
        if missing:
            logger.warning(
                "%s: %d classes of %s have no image in %s (%s); none of their images can be "
                "classified rightly",
                first.name,
                len(missing),
                split.split,
                first.split,
                examples(missing),
            )


def _difference(one: ClassTable | None, other: ClassTable) -> str:
    ours, theirs = set(one.keys if one else ()), set(other.keys)
    only = sorted(ours ^ theirs)
    return f"only in one: {examples(only)}" if only else "in another order or with other names"


def looks(text: str) -> str:
    """What a reader sees of a text: single spaces, accents composed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def table_of_labels(labels: Collection[str], *, source: str) -> ClassTable:
    """The table of labels that a column holds: whole numbers are indices, others are names, sorted.

    Raises:
        DataError: The labels are whole numbers, and one is negative or above `MAX_CLASSES`.
    """
    if all(label.isascii() and label.isdigit() and len(label) < 10 for label in labels):
        return table_of_indices(map(int, labels), source=source)
    negative = sorted(label for label in labels if re.fullmatch(r"-[0-9]+", label))
    if negative:
        raise DataError(
            f"{source}: {negative[0]} is no class index, and -1 often means that a label is not "
            "known. Remove these rows, or write the names of the classes."
        )
    names = tuple(sorted(labels))
    return ClassTable(names, names, source=source)


def table_of_indices(indices: Iterable[int], *, source: str) -> ClassTable:
    """A table of the numbers from 0 to the largest one seen.

    Raises:
        DataError: A number is negative, or above `MAX_CLASSES`.
    """
    largest = -1
    for index in indices:
        if not 0 <= index < MAX_CLASSES:
            raise DataError(
                f"{source}: {index} is no class index. Indices go from 0 to at most "
                f"{MAX_CLASSES - 1}. Correct it, or give a class list."
            )
        largest = max(largest, index)
    names = tuple(str(index) for index in range(largest + 1))
    return ClassTable(names, names, source=source)


def parse_index(text: str, *, where: str) -> int:
    """A class index written in digits.

    Raises:
        DataError: It is anything else, or too large to be one.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise DataError(
            f"{where}: {shown(text.strip()[:40])!r} is no class index. It should be a whole number "
            f"from 0 to {MAX_CLASSES - 1}."
        )
    return int(text)


def imagenet_table() -> ClassTable:
    """ImageNet's 1,000 WordNet ids, with timm's descriptions."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo(IMAGENET_CLASSES)
    synsets = tuple(info.label_names())
    names = tuple(info.index_to_description(i) for i in range(info.num_classes()))
    return ClassTable(synsets, names, source=IMAGENET_CLASSES)


def folder_table(
    classes: str | None, *, field: str, root: Path, folders: Sequence[str]
) -> ClassTable:
    """The table of a data set with a folder a class.

    Args:
        classes: A file below `root`, `imagenet-1k`, `index`, or None for the folders themselves.
        field: Key of the class's words, where the list holds objects.
        root: Folder of the data set.
        folders: The class folders of all splits.

    Raises:
        DataError: The list is missing or broken, or a folder is no index.
    """
    if classes is None:
        present = tuple(sorted(set(folders)))
        return ClassTable(present, present, source=f"the class folders in {root}")
    if classes == IMAGENET_CLASSES:
        return imagenet_table()
    if classes == FOLDER_IS_INDEX:
        return _index_folders(root, folders)
    return read_class_table(root / classes, field=field)


def _index_folders(root: Path, folders: Sequence[str]) -> ClassTable:
    """Folders named by their index; `007` is class 7."""
    key_of: dict[int, str] = {}
    for name in sorted(set(folders)):
        index = parse_index(name, where=f"{root} (classes: index), folder {shown(name)!r}")
        if index in key_of:
            raise DataError(
                f"{root}: the folders {key_of[index]!r} and {name!r} are both class {index}. "
                "Keep one."
            )
        key_of[index] = name
    table = table_of_indices(key_of, source=f"{root} (classes: index)")
    keys = tuple(key_of.get(index, str(index)) for index in range(len(table)))
    return ClassTable(keys, table.names, source=table.source)


def read_class_table(path: Path, *, field: str = "name") -> ClassTable:
    """Read a class list, in index order.

    Args:
        path: A JSON list of names, or of objects with `name` (and `wnid` for the folder, `kind`);
            or text with one class a line, `folder name` or a single word for both.
        field: Key of the class's words, where the list holds objects.

    Raises:
        DataError: The file is missing, is no class list, or lists a class twice.
    """
    if not path.exists():
        raise DataError(f"No class list {path}. Unpack the data set again.")
    text = read_text(path)
    try:
        if path.suffix != ".json":
            lines = [line.split(maxsplit=1) for line in text.split("\n") if line.strip()]
            if any(line[0].startswith("#") for line in lines):
                raise ValueError("a line begins with #, and there are no comments in it")
            keys, names, kinds = [p[0] for p in lines], [p[-1].strip() for p in lines], None
        else:
            keys, names, kinds = _from_json(parse_json(text), field)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is no class list ({type(error).__name__}: {error}). It should be a JSON list "
            "of names or of objects with `wnid` and `name`, or text with one `folder name` a line."
        ) from None
    if not keys:
        raise DataError(f"{path} lists no class. Unpack the data set again.")
    return ClassTable(tuple(keys), tuple(names), tuple(kinds) if kinds else None, source=str(path))


def _from_json(entries: Any, field: str) -> tuple[list[str], list[str], list[str] | None]:
    """Keys, names and kinds of a class list in JSON."""
    if not isinstance(entries, list):
        raise TypeError(f"a list is expected, not {type(entries).__name__}")
    if all(isinstance(entry, str) for entry in entries):
        return list(entries), list(entries), None
    names = [_word(entry[field]) for entry in entries]
    keys = [_word(entry.get("wnid", entry["name"])) for entry in entries]
    kinds = [entry.get("kind") for entry in entries]
    return keys, names, [str(kind) for kind in kinds] if all(kinds) else None


def _word(value: Any) -> str:
    """A class's key or name.

    Raises:
        ValueError: It is empty, or no text and no whole number.
    """
    word = key_of(value)
    if not word.strip():
        raise ValueError(f"{value!r} names no class")
    return word
