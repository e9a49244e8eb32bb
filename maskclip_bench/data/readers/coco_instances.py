"""COCO's layout: `{split}/*.jpg`, `annotations/instances_{split}.json`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from maskclip_bench.data.dataset import Dataset, FileImages, fingerprint_of
from maskclip_bench.data.directory_walk import file_size
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.errors import DataError


class COCOInstances(ReaderDeclaration):
    """Images with boxes and masks of objects."""

    kind: Literal["coco_instances"] = "coco_instances"

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The folder of images and the annotation file."""
        return [root, root / split, root / "annotations" / f"instances_{split}.json"]

    def open(self, split: str, root: Path, *, what: str) -> Dataset:
        """Open a split; see the base class."""
        path = root / "annotations" / f"instances_{split}.json"
        try:
            content = path.read_bytes()
            loaded = json.loads(content)
            names = [str(image["file_name"]) for image in loaded["images"]]
            class_names = [str(entry["name"]) for entry in loaded["categories"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is no COCO instance file ({type(error).__name__}: {error}). Unpack the "
                "annotations again."
            ) from None
        return Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=list(names),
            fingerprint=fingerprint_of(
                (
                    hashlib.sha256(content).hexdigest(),
                    *((name, file_size(root / split / name)) for name in names),
                ),
                class_names,
            ),
            read=FileImages([root / split / name for name in names]),
            class_names=class_names,
            annotations=[path],
        )
