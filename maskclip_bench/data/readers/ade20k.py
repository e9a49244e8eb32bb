"""ADE20K's layout: `images/{split}/*.jpg`, `annotations/{split}/*.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from maskclip_bench.data.class_table import ClassTable, read_class_table
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.masks import pair_masks
from maskclip_bench.data.readers.base import ReaderDeclaration


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
        """From the declared list; None without one."""
        if self.classes is None:
            return None
        return read_class_table(root / self.classes, field=self.class_field)

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
