"""One split of an evaluation data set: ids, groups, labels, captions, and images read on demand.

Every sample has an id, and a group: samples of one group were not drawn independently (crops of one
drawing, captions of one image), and a bootstrap resamples groups.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskclip_bench.errors import ConfigError, DataError

READER_VERSION = 1
"""Part of every fingerprint; raised when a reader changes what it returns for the same files."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set; images are decoded when asked for.

    Attributes:
        name: Of the data set, for messages.
        split: The data set's own name of the split.
        sample_ids: Unique, one an image.
        groups: Group of each image.
        fingerprint: Hash of the file names, sizes, labels and captions.
        read: Index -> image; picklable, so that worker processes can use it.
        labels: int64 [N], or None.
        class_names: In index order; empty without labels.
        captions: One list of captions an image, or None.
        annotations: Mask of each image (ade20k), or the one JSON file (coco_instances).
    """

    name: str
    split: str
    sample_ids: list[str]
    groups: list[str]
    fingerprint: str
    read: Callable[[int], Image.Image]
    labels: NDArray[np.int64] | None = None
    class_names: list[str] = field(default_factory=list)
    captions: list[list[str]] | None = None
    annotations: list[Path] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def image(self, index: int) -> Image.Image:
        """One image as RGB.

        Raises:
            DataError: It cannot be read; names the file.
        """
        return self.read(index)

    def need_labels(self) -> NDArray[np.int64]:
        """The labels, int64 [N].

        Raises:
            ConfigError: The data set has none.
        """
        if self.labels is None:
            raise ConfigError(
                f"{self.name} ({self.split}) has no class labels, which this protocol needs. "
                "Use it under retrieval, or a reader of kind image_folder or torchvision."
            )
        return self.labels

    def need_captions(self) -> list[list[str]]:
        """The captions of each image.

        Raises:
            ConfigError: The data set has none.
        """
        if self.captions is None:
            raise ConfigError(
                f"{self.name} ({self.split}) has no captions, which retrieval needs. "
                "Use a reader of kind karpathy or webdataset."
            )
        return self.captions


@dataclass(frozen=True)
class FileImages:
    """Images that are files."""

    paths: list[Path]

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        return _decode(lambda: Image.open(self.paths[index]), self.paths[index])


@dataclass(frozen=True)
class TarImages:
    """Images inside tar files, read at their offset."""

    places: list[tuple[Path, int, int]]
    names: list[str]

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        path, offset, size = self.places[index]

        def open_image() -> Image.Image:
            with path.open("rb") as file:
                file.seek(offset)
                return Image.open(io.BytesIO(file.read(size)))

        return _decode(open_image, f"{self.names[index]} in {path}")


@dataclass(frozen=True)
class IndexedImages:
    """Images of a data set with `[index]` -> (image, label)."""

    images: Any
    chosen: list[int]
    what: str

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        position = self.chosen[index]
        return _decode(lambda: self.images[position][0], f"image {position} of {self.what}")


def _decode(open_image: Callable[[], Image.Image], what: object) -> Image.Image:
    try:
        return open_image().convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"Cannot read {what} ({type(error).__name__}: {error}). It is missing or damaged; "
            "copy it again, or make or unpack the data set again."
        ) from None


def fingerprint_of(rows: Any, class_names: list[str]) -> str:
    """Hash of a split from JSON-like rows, one a sample, and the class names."""
    digest = hashlib.sha256(json.dumps([READER_VERSION, class_names]).encode())
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]
