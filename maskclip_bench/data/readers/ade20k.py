"""ADE20K's layout: `images/{split}/*.jpg`, `annotations/{split}/*.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from maskclip_bench.data.class_table import ClassTable, read_class_table
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.left_over import shown
from maskclip_bench.data.masks import pair_masks
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.errors import DataError


class ADE20K(ReaderDeclaration):
    """Images with masks of classes (0 = unlabelled, 1 to C, 255 = unlabelled)."""

    kind: Literal["ade20k"] = "ade20k"
    classes: str | None = None
    """File with the classes of the mask values from 1 on, in order (JSON list of names or of
    objects with `name` and `kind`; or text, one `value name` a line)."""
    class_field: str = "name"
    """Key of the class's words, where the list holds objects."""

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The folders of images and of masks."""
        return [root, root / "images" / split, root / "annotations" / split]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable | None:
        """From the declared list; None without one.

        Raises:
            DataError: It is broken, or a list in text is not in the order of the masks' values.
        """
        if self.classes is None:
            return None
        path = root / self.classes
        table = read_class_table(path, field=self.class_field)
        values = tuple(str(value) for value in range(1, len(table) + 1))
        if path.suffix != ".json" and table.keys not in (table.names, values):
            raise DataError(
                f"{what}: line 1 of {path} reads as the value {shown(table.keys[0])!r} and the "
                f"name {shown(table.names[0])!r}, and so on. Write `value name` a line with the "
                "values 1, 2, 3... in order, or names of one word, or a JSON list of names."
            )
        return table

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        images, masks, left_over = pair_masks(root / "images" / split, root / "annotations" / split)
        names = [image.name for image in images]
        paths = [image.path for image in images]
        return Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=list(names),
            read=FileImages(paths),
            files=[path for pair in zip(paths, masks, strict=True) for path in pair],
            classes=classes,
            image_paths=paths,
            annotations=masks,
            left_over=left_over,
        )
