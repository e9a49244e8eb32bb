"""ADE20K's layout: `images/{split}/*.jpg`, `annotations/{split}/*.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from maskclip_bench.data.class_table import read_class_list
from maskclip_bench.data.dataset import Dataset, FileImages, fingerprint_of
from maskclip_bench.data.directory_walk import file_size, list_images
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.errors import DataError


class ADE20K(ReaderDeclaration):
    """Images with masks of classes."""

    kind: Literal["ade20k"] = "ade20k"
    classes: str | None = None
    """File with the classes of the mask values from 1 on, in order (JSON list of names or of
    objects with `name`; or text, one `value name` a line)."""
    class_field: str = "name"
    """Key of the class's words, where the list holds objects."""

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The folders of images and of masks."""
        return [root, root / "images" / split, root / "annotations" / split]

    def open(self, split: str, root: Path, *, what: str) -> Dataset:
        """Open a split; see the base class."""
        folder, masks = root / "images" / split, root / "annotations" / split
        files = list(list_images(folder))
        names = [file.as_posix() for file, _ in files]
        annotations = [masks / Path(name).with_suffix(".png") for name in names]
        absent = [path for path in annotations if not path.is_file()]
        if absent:
            raise DataError(
                f"{what}: {len(absent)} of {len(names)} images in {folder} have no mask, e.g. "
                f"{absent[0]}. Unpack the annotations again."
            )
        class_names: list[str] = []
        if self.classes:
            _, class_names = read_class_list(root / self.classes, field=self.class_field)
        return Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=list(names),
            fingerprint=fingerprint_of(
                (
                    (name, size, file_size(mask))
                    for (name, (_, size), mask) in zip(names, files, annotations, strict=True)
                ),
                class_names,
            ),
            read=FileImages([folder / name for name in names]),
            class_names=class_names,
            annotations=annotations,
        )
