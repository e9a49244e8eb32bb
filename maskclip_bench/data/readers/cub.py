"""CUB-200-2011's layout: `images/`, and lists of images, classes, labels and splits beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.directory_walk import walk_images
from maskclip_bench.data.left_over import check_present, examples, shown
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.text_files import read_lines
from maskclip_bench.errors import ConfigError, DataError

LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
NOT_LISTED = "images that images.txt does not name"
SPLITS = {"train": "1", "test": "0"}
"""Split -> its word in `train_test_split.txt`."""


class CUB(ReaderDeclaration):
    """Birds of 200 species, with the official split (`train` or `test`)."""

    kind: Literal["cub"] = "cub"

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The images and the four lists."""
        return [root, root / "images", *(root / name for name in LISTS)]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable:
        """`classes.txt`: the folder is the key, its words without the number the name."""
        keys = tuple(_pairs(root / "classes.txt", what).values())
        names = tuple(key.partition(".")[2].replace("_", " ") or key for key in keys)
        return ClassTable(keys, names, source=str(root / "classes.txt"))

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        assert classes is not None
        if split not in SPLITS:
            raise ConfigError(
                f"{what}: {LISTS[2]} has the splits train and test, not {split!r}. "
                "Correct `splits`."
            )
        images, numbers, splits = (_pairs(root / name, what) for name in LISTS[:3])
        position = {number: index for index, number in enumerate(_pairs(root / LISTS[3], what))}
        for name, listed in zip(LISTS[1:], (numbers, splits), strict=False):
            missing = [image for number, image in images.items() if number not in listed]
            if missing:
                raise DataError(
                    f"{what}: {root / name} does not list {len(missing)} of {len(images)} images, "
                    f"e.g. {examples(missing)}. Unpack the archive again."
                )
        self._check_splits(splits, root / LISTS[2], what)
        wrong = [images[number] for number in images if numbers[number] not in position]
        if wrong:
            raise DataError(
                f"{what}: {len(wrong)} images have a class that {LISTS[3]} does not list, e.g. "
                f"{examples(wrong)}. Unpack the archive again."
            )
        moved = [
            name
            for number, name in images.items()
            if name.partition("/")[0] != classes.keys[position[numbers[number]]]
        ]
        if moved:
            raise DataError(
                f"{what}: {len(moved)} images are in the folder of another class than {LISTS[1]} "
                f"says, e.g. {examples(moved)}. Unpack the archive again."
            )
        chosen = [number for number in images if splits[number] == SPLITS[split]]
        names = [images[number] for number in chosen]
        paths = [root / "images" / name for name in names]
        where = f"are not in {root / 'images'}"
        check_present(names, paths, what=what, where=where, remedy="Unpack the archive again.")
        labels = [position[numbers[number]] for number in chosen]
        walk = walk_images(root / "images")
        known = set(images.values())
        not_listed = (file.name for file in walk.files if file.name not in known)
        walk.left_over.add_all(NOT_LISTED, not_listed)
        return Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=list(names),
            read=FileImages(paths),
            files=paths,
            labels=np.array(labels, dtype=np.int64),
            classes=classes,
            image_paths=paths,
            left_over=walk.left_over,
        )

    @staticmethod
    def _check_splits(splits: dict[str, str], path: Path, what: str) -> None:
        """Every image is of one of the two splits.

        Raises:
            DataError: One is of none.
        """
        odd = [word for word in splits.values() if word not in SPLITS.values()]
        if odd:
            raise DataError(
                f"{what}: {path} says {examples(odd)} of {len(odd)} images; 1 is train and 0 is "
                "test. Unpack the archive again."
            )


def _pairs(path: Path, what: str) -> dict[str, str]:
    """`number word` a line -> {number: word}, in the order of the lines.

    Raises:
        DataError: A line is something else.
    """
    found: dict[str, str] = {}
    for line_number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            raise DataError(
                f"{what}: line {line_number} of {path} is {shown(line)!r}. It should be a number "
                "and one word. Unpack the archive again."
            )
        if words[0] in found:
            raise DataError(
                f"{what}: line {line_number} of {path} lists the number {shown(words[0])} again. "
                "Unpack the archive again."
            )
        found[words[0]] = words[1]
    return found
