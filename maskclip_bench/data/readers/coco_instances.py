"""COCO's layout: `{split}/*.jpg`, `annotations/instances_{split}.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.coco import coco_classes, image_names, outside_boxes, read_coco
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.directory_walk import walk_images
from maskclip_bench.data.left_over import examples
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.errors import DataError

NOT_LISTED = "images that the annotation file does not name"


class COCOInstances(ReaderDeclaration):
    """Images with boxes and masks of objects."""

    kind: Literal["coco_instances"] = "coco_instances"

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The folder of images and the annotation file."""
        return [root, root / split, _annotations(root, split)]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable:
        """The categories of the first split, which those of the others must match."""
        return coco_classes([_annotations(root, split) for split in splits])

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        path, folder = _annotations(root, split), root / split
        content = read_coco(path)
        names = image_names(content)
        paths = [folder / name for name in names]
        absent = [name for name, file in zip(names, paths, strict=True) if not file.is_file()]
        if absent:
            raise DataError(
                f"{what}: {path.name} names {len(absent)} of {len(names)} images that are not in "
                f"{folder}, e.g. {examples(absent)}. Unpack the images again."
            )
        walk = walk_images(folder)
        listed = set(names)
        walk.left_over.add_all(NOT_LISTED, (f.name for f in walk.files if f.name not in listed))
        walk.left_over.merge(outside_boxes(content))
        return Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=list(names),
            read=FileImages(paths),
            files=[path, *paths],
            classes=classes,
            image_paths=paths,
            annotations=[path],
            left_over=walk.left_over,
        )


def _annotations(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"
