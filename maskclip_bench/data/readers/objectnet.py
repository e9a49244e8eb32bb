"""ObjectNet, on the 113 classes that ImageNet has too.

Every picture has a red border, 2 pixels wide, so that training on it is noticed; it is cut off
before the row's own preprocessing, as ObjectNet's authors ask and WiSE-FT's code does
(CLIP_benchmark leaves it). The class table has ObjectNet's own words, in the order of its folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeInt

from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.directory_walk import walk_images
from maskclip_bench.data.left_over import LeftOver, examples
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.text_files import read_json
from maskclip_bench.errors import DataError

LABELS = "folder_to_objectnet_label.json"
IN_IMAGENET = "objectnet_to_imagenet_1k.json"

NOT_IN_IMAGENET = "images of classes that ImageNet does not have"
NO_CLASS = "images in folders that the mappings do not name"


class ObjectNet(ReaderDeclaration):
    """Photographs of things in unusual positions; there is only a `test` split."""

    kind: Literal["objectnet"] = "objectnet"
    border: NonNegativeInt = 2
    """Pixels cut off each side."""

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The images and the two mappings that are read."""
        mappings = root / "mappings"
        return [root, root / "images", mappings / LABELS, mappings / IN_IMAGENET]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable:
        """The folders whose class ImageNet has, sorted."""
        label_of = _mapping(root / "mappings" / LABELS, what)
        shared = _mapping(root / "mappings" / IN_IMAGENET, what)
        unknown = sorted(set(shared) - set(label_of.values()))
        if unknown:
            raise DataError(
                f"{what}: {IN_IMAGENET} names {len(unknown)} classes that {LABELS} does not have, "
                f"e.g. {examples(unknown)}. Unpack ObjectNet again."
            )
        folders = sorted(folder for folder, label in label_of.items() if label in shared)
        names = tuple(label_of[folder].lower() for folder in folders)
        return ClassTable(tuple(folders), names, source=str(root / "mappings" / LABELS))

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open the one split; see the base class."""
        assert classes is not None
        known = _mapping(root / "mappings" / LABELS, what)
        walk = walk_images(root / "images")
        left_over = LeftOver()
        left_over.merge(walk.left_over)
        files = []
        for file in walk.files:
            folder = file.name.partition("/")[0]
            if folder in classes.index_of:
                files.append(file)
            else:
                left_over.add(NOT_IN_IMAGENET if folder in known else NO_CLASS, file.name)
        names, paths = [file.name for file in files], [file.path for file in files]
        labels = [classes.index_of[name.partition("/")[0]] for name in names]
        return Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=list(names),
            read=WithoutBorder(FileImages(paths), self.border),
            files=paths,
            labels=np.array(labels, dtype=np.int64),
            classes=classes,
            image_paths=paths,
            left_over=left_over,
            identity=["border", self.border],
        )


@dataclass(frozen=True)
class WithoutBorder:
    """Images without a border of some pixels.

    Attributes:
        images: The whole images.
        border: Pixels cut off each side.
    """

    images: FileImages
    border: int

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB, and cut its border off.

        Raises:
            DataError: It cannot be read, or is all border.
        """
        image = self.images(index)
        width, height = image.size
        if min(width, height) <= 2 * self.border:
            raise DataError(
                f"{self.images.paths[index]} has {width} x {height} pixels and a border of "
                f"{self.border}: nothing would be left. Unpack ObjectNet again."
            )
        return image.crop((self.border, self.border, width - self.border, height - self.border))

    def check(self, index: int) -> None:
        """Read one header; a `DataError` says what is wrong."""
        self.images.check(index)


def _mapping(path: Path, what: str) -> dict[str, str]:
    """A JSON file that maps words to words.

    Raises:
        DataError: It is something else.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(word, str) for word in found.values()):
        raise DataError(f"{what}: {path} does not map words to words. Unpack ObjectNet again.")
    return found
