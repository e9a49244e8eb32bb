"""Pascal VOC's layout, for classification: `VOCdevkit/VOC{year}` as its archives unpack it.

An image has several classes. `ImageSets/Main/{class}_{split}.txt` says of each image 1 (present),
-1 (absent) or 0 (only objects marked as difficult, which VOC's own evaluation does not score).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.left_over import check_present, examples, shown
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.text_files import read_lines
from maskclip_bench.errors import DataError

VALUES = {"1": 1, "-1": 0, "0": -1}
"""VOC's word -> ours: 1 = present, 0 = absent, -1 = not scored."""

DIFFICULT = {"not_scored": -1, "present": 1, "absent": 0}


class VOC(ReaderDeclaration):
    """Images of several classes."""

    kind: Literal["voc"] = "voc"
    year: str = "2007"
    """Of the challenge: the folder is `VOCdevkit/VOC{year}`."""
    difficult: Literal["not_scored", "present", "absent"] = "not_scored"
    """What an image counts as for a class of which it shows only difficult objects; VOC's own
    evaluation does not score it."""

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The folder of images and the list of the split."""
        folder = self._folder(root)
        return [root, folder / "JPEGImages", folder / "ImageSets/Main" / f"{split}.txt"]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable:
        """The classes for which every split has a list.

        Raises:
            DataError: A split lacks the list of a class, or there is none.
        """
        lists = {split: self._lists(root, split) for split in splits}
        names = sorted({name for found in lists.values() for name in found})
        main = self._folder(root) / "ImageSets/Main"
        for split, found in lists.items():
            missing = [name for name in names if name not in found]
            if missing or not names:
                raise DataError(
                    f"{what}: {main} has no list of {examples(missing) or 'any class'} for the "
                    f"split {split!r}. Unpack VOC's archives (trainval, test) into one folder."
                )
        return ClassTable(tuple(names), tuple(names), source=str(main))

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        assert classes is not None
        folder = self._folder(root)
        listing = folder / "ImageSets/Main" / f"{split}.txt"
        names = [line.split()[0] for line in read_lines(listing) if line.strip()]
        lists = self._lists(root, split)
        labels = np.stack(
            [self._values(lists[key], names, what) for key in classes.keys], axis=1
        )  # [N, C]
        paths = [folder / "JPEGImages" / f"{name}.jpg" for name in names]
        where = f"of {listing.name} are not in {folder / 'JPEGImages'}"
        check_present(names, paths, what=what, where=where, remedy="Unpack the archive again.")
        return Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=list(names),
            read=FileImages(paths),
            files=paths,
            classes=classes,
            image_paths=paths,
            multi_labels=labels,
        )

    def _folder(self, root: Path) -> Path:
        return root / "VOCdevkit" / f"VOC{self.year}"

    def _lists(self, root: Path, split: str) -> dict[str, Path]:
        """Class -> its list for the split."""
        ending = f"_{split}.txt"
        main = self._folder(root) / "ImageSets/Main"
        return {path.name.removesuffix(ending): path for path in sorted(main.glob(f"*{ending}"))}

    def _values(self, path: Path, names: Sequence[str], what: str) -> NDArray[np.int8]:
        """Of each image, whether it has the class, int8 [N].

        Raises:
            DataError: A line is no image and value, or an image has none.
        """
        found: dict[str, int] = {}
        for number, line in enumerate(read_lines(path), start=1):
            words = line.split()
            if not words:
                continue
            if len(words) != 2 or words[1] not in VALUES:
                raise DataError(
                    f"{what}: line {number} of {path} is {shown(line)!r}. It should be an image "
                    "and 1, 0 or -1. Unpack the archive again."
                )
            value = VALUES[words[1]]
            value = DIFFICULT[self.difficult] if value == -1 else value
            if found.setdefault(words[0], value) != value:
                raise DataError(
                    f"{what}: line {number} of {path} says something else of {shown(words[0])} "
                    "than a line before. Unpack the archive again."
                )
        missing = [name for name in names if name not in found]
        if missing:
            raise DataError(
                f"{what}: {path} says nothing of {len(missing)} of {len(names)} images, e.g. "
                f"{examples(missing)}. Unpack the archive again."
            )
        return np.array([found[name] for name in names], dtype=np.int8)
