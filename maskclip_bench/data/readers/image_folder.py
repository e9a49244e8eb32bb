"""Images in a folder a class: `{split}/{class}/**/*.jpg`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from maskclip_bench.data.class_table import classes_of
from maskclip_bench.data.dataset import Dataset, FileImages, fingerprint_of
from maskclip_bench.data.directory_walk import list_images
from maskclip_bench.data.groups import Groups, find_groups
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.errors import DataError, did_you_mean


class ImageFolder(ReaderDeclaration):
    """Images in a folder a class."""

    kind: Literal["image_folder"] = "image_folder"
    classes: str | None = None
    """File with the classes in index order (JSON list of names or of objects with `wnid` and
    `name`; or text, one `folder name` a line), `imagenet-1k`, or `index`. Without it the folders,
    sorted."""
    class_field: str = "name"
    """Key of the class's words, where the list holds objects."""
    groups: Groups = Groups()
    """Without it, each image is its own group."""

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The folder of the split."""
        return [root, root / split]

    def open(self, split: str, root: Path, *, what: str) -> Dataset:
        """Open a split; see the base class."""
        folder = root / split
        files = list(list_images(folder))
        present = sorted({file.parts[0] for file, _ in files if len(file.parts) > 1})
        index_of, class_names = classes_of(self.classes, self.class_field, root, present)
        unknown = [name for name in present if name not in index_of]
        if unknown:
            raise DataError(
                f"{what}: {len(unknown)} folders in {folder} are no class of "
                f"{self.classes}, e.g. {unknown[0]!r}.{did_you_mean(unknown[0], index_of)} "
                "Move them elsewhere, or correct the class list."
            )
        files = [(file, size) for file, size in files if len(file.parts) > 1]
        names = [file.as_posix() for file, _ in files]
        labels = np.array([index_of[file.parts[0]] for file, _ in files], dtype=np.int64)
        groups = find_groups(self.groups, names, root, split, what)
        return Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=groups,
            fingerprint=fingerprint_of(
                zip(names, (size for _, size in files), labels.tolist(), groups, strict=True),
                class_names,
            ),
            read=FileImages([folder / name for name in names]),
            labels=labels,
            class_names=class_names,
        )
