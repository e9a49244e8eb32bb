"""One split of an evaluation data set: ids, groups, labels, captions, and images read on demand.

Every sample has an id, and a group: samples of one group were not drawn independently (crops of one
drawing, captions of one image), and a bootstrap resamples groups. What must hold for any reader is
checked here, when a split is opened: unique ids, labels inside the class table, one entry a sample.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskclip_bench.content_hash import files_hash
from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.images import decode, read_header, to_rgb
from maskclip_bench.data.left_over import LeftOver, examples, shown
from maskclip_bench.data.masks import check_mask_sizes, check_mask_values
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.progress import Progress, throttled

logger = logging.getLogger(__name__)

READER_VERSION = 2
"""Part of every fingerprint; raised when a reader changes what it returns for the same files."""

CHECK_THREADS = 8
REPORT_SECONDS = 0.5

_told = threading.local()


@contextmanager
def hashing_told(progress: Progress) -> Iterator[None]:
    """Within it, whoever asks for a fingerprint in this thread makes `progress` hear of hashing.

    The first pass over a large data set takes minutes; its hashes are remembered for later runs.
    """
    before = getattr(_told, "progress", None)
    _told.progress = throttled(progress, seconds=REPORT_SECONDS)
    try:
        yield
    finally:
        _told.progress = before


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set; images are decoded when asked for.

    Attributes:
        name: Of the data set, for messages.
        split: The data set's own name of the split.
        sample_ids: Unique, one an image: its path below the folder of the split.
        groups: Group of each image.
        read: Index -> image; picklable, so that worker processes can use it.
        files: Every file whose content decides what the split gives, in a fixed order.
        labels: int64 [N], or None.
        multi_labels: int8 [N, C], for images of several classes: 1 = present, 0 = absent, -1 = not
            scored (VOC's difficult objects); None for all other data.
        classes: The data set's classes, the same for all its splits; None without labels or masks.
        captions: One list of captions an image, or None.
        image_paths: The file of each image, where each is a file of its own; else empty.
        annotations: Mask of each image (ade20k), or the one JSON file (coco_instances).
        left_over: What the folder or list holds beyond the split.
        identity: What else decides what the split gives (JSON-like), e.g. options.

    Raises:
        DataError: An id occurs twice, a label is no class, or a list has another length.
    """

    name: str
    split: str
    sample_ids: list[str]
    groups: list[str]
    read: Callable[[int], Image.Image]
    files: list[Path]
    labels: NDArray[np.int64] | None = None
    classes: ClassTable | None = None
    captions: list[list[str]] | None = None
    image_paths: list[Path] = field(default_factory=list)
    annotations: list[Path] = field(default_factory=list)
    left_over: LeftOver = field(default_factory=LeftOver)
    identity: Any = None
    multi_labels: NDArray[np.int8] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_ids()
        self._check_captions()
        for what, values in (
            ("groups", self.groups),
            ("labels", self.labels),
            ("rows of labels", self.multi_labels),
            ("captions", self.captions),
            ("image paths", self.image_paths or None),
        ):
            if values is not None and len(values) != len(self):
                raise DataError(
                    f"{self.name} ({self.split}): {len(values)} {what} for {len(self)} images. "
                    "This is a fault of the reader."
                )
        self._check_multi_labels()
        if self.labels is not None and len(self):
            num_classes = len(self.classes) if self.classes is not None else 0
            wrong = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
            if len(wrong):
                raise DataError(
                    f"{self.name} ({self.split}): {len(wrong)} labels are no class, e.g. "
                    f"{self.labels[wrong[0]]} of {shown(self.sample_ids[wrong[0]])}; there are "
                    f"{num_classes} classes, 0 to {num_classes - 1}. Correct the labels or the "
                    "class list."
                )

    def _check_multi_labels(self) -> None:
        if self.multi_labels is None:
            return
        num_classes = len(self.classes) if self.classes is not None else 0
        found = set(np.unique(self.multi_labels).tolist())
        if self.multi_labels.shape != (len(self), num_classes) or not found <= {-1, 0, 1}:
            raise DataError(
                f"{self.name} ({self.split}): labels of several classes are "
                f"{list(self.multi_labels.shape)} with the values {sorted(found)[:5]}; they should "
                f"be [{len(self)}, {num_classes}] of -1, 0 and 1. This is a fault of the reader."
            )

    def _check_captions(self) -> None:
        """Every caption says something: an empty one would be scored as any other."""
        for name, texts in zip(self.sample_ids, self.captions or (), strict=False):
            for text in texts:
                if not text.strip() or not _is_whole(text):
                    problem = "is empty" if not text.strip() else "holds half characters"
                    raise DataError(
                        f"{self.name} ({self.split}): a caption of {shown(name)} {problem}. "
                        "Correct the file that lists it, or leave the image out."
                    )

    def _check_ids(self) -> None:
        for name in self.sample_ids:
            if not _is_whole(name):
                raise DataError(
                    f"{self.name} ({self.split}): the id {shown(name)} holds half characters, "
                    "which no record can. Correct the file that lists it."
                )
        if len(set(self.sample_ids)) == len(self.sample_ids):
            return
        repeated = [name for name, count in Counter(self.sample_ids).items() if count > 1]
        raise DataError(
            f"{self.name} ({self.split}): {len(repeated)} images occur twice, e.g. "
            f"{examples(repeated)}. Remove one of each, or correct the list that names them."
        )

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in index order; empty without classes."""
        return list(self.classes.names) if self.classes is not None else []

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what the split gives; hashes the files the first time.

        Raises:
            DataError: A file cannot be read.
        """
        return self.hash_files()

    def hash_files(self, progress: Callable[[int, int], None] | None = None) -> str:
        """`fingerprint`, with progress in (bytes done, bytes to read).

        It covers the contents of `files` (their hashes are remembered between runs), ids, groups,
        labels, captions, classes, and the name of the split; not where the files are.

        Raises:
            DataError: A file cannot be read.
        """
        with self._lock:
            if "_fingerprint" not in self.__dict__:
                content = files_hash(self.files, progress or self._told_progress())
                self.__dict__["_fingerprint"] = self._hash(content)
            return str(self.__dict__["_fingerprint"])

    def _told_progress(self) -> Callable[[int, int], None] | None:
        progress: Progress | None = getattr(_told, "progress", None)
        if progress is None:
            return None
        stage = f"hashing {self.split}, MB"
        return lambda done, total: progress(stage, done >> 20, max(total >> 20, 1))

    def _hash(self, content: str) -> str:
        table = self.classes.fingerprint if self.classes is not None else None
        rows: dict[str, Any] = {
            "version": READER_VERSION,
            "split": self.split,
            "ids": self.sample_ids,
            "groups": self.groups,
            "labels": None if self.labels is None else self.labels.tolist(),
            "captions": self.captions,
            "classes": table,
            "content": content,
            "identity": self.identity,
        }
        if self.multi_labels is not None:
            rows["multi_labels"] = self.multi_labels.tolist()
        text = json.dumps(rows, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def take(self, indices: Sequence[int]) -> Dataset:
        """A split with only some of the images, in a new order; its fingerprint is another one.

        Args:
            indices: Which images.
        """
        if list(indices) == list(range(len(self))):
            return self

        def chosen(values: list[Any]) -> list[Any]:
            return [values[index] for index in indices]

        of_images = len(self.annotations) == len(self)  # else one file for all
        return replace(
            self,
            sample_ids=chosen(self.sample_ids),
            groups=chosen(self.groups),
            read=ChosenImages(self.read, tuple(indices)),
            labels=None if self.labels is None else self.labels[list(indices)],
            multi_labels=None if self.multi_labels is None else self.multi_labels[list(indices)],
            captions=None if self.captions is None else chosen(self.captions),
            image_paths=chosen(self.image_paths) if self.image_paths else [],
            annotations=chosen(self.annotations) if of_images else self.annotations,
            identity=[self.identity, "images", list(indices)],
        )

    def image(self, index: int) -> Image.Image:
        """One image as RGB.

        Raises:
            DataError: It cannot be read; names the file.
        """
        return self.read(index)

    def check_images(self, progress: Progress | None = None) -> None:
        """Read the header of every image, once, so that a broken one is found before the work.

        Raises:
            DataError: Some are missing, empty, no image, or too large; names the first of them.
        """
        if "_checked" in self.__dict__ or not hasattr(self.read, "check"):
            return
        problems: list[str] = []
        with ThreadPoolExecutor(CHECK_THREADS) as pool:
            for done, problem in enumerate(pool.map(self._problem, range(len(self)))):
                problems += [problem] if problem else []
                if progress is not None and done % 1000 == 0:
                    progress("checking image files", done, len(self))
        if problems:
            raise DataError(
                f"{self.name} ({self.split}): {len(problems)} of {len(self)} images cannot be "
                f"used. {problems[0]}"
            )
        self.__dict__["_checked"] = True

    def check_masks(self, num_classes: int | None) -> None:
        """Look at the sizes and values of all masks, once, before the work begins.

        Args:
            num_classes: None if it is not known.

        Raises:
            DataError: A mask cannot be read, is not of its image's size, or has a value that is no
                class.
        """
        if self.__dict__.get("_checked_masks", "no") != num_classes:
            if self.image_paths:
                check_mask_sizes(self.image_paths, self.annotations)
            check_mask_values(self.annotations, num_classes=num_classes)
            self.__dict__["_checked_masks"] = num_classes

    def _problem(self, index: int) -> str | None:
        try:
            self.read.check(index)  # type: ignore[attr-defined]
        except DataError as error:
            return str(error)
        return None

    def need_labels(self) -> NDArray[np.int64]:
        """The labels, int64 [N].

        Raises:
            ConfigError: The data set has none.
        """
        if self.labels is None and self.multi_labels is not None:
            raise ConfigError(
                f"{self.name} ({self.split}) has several classes an image, which this protocol "
                "does not score. Use zero_shot_classification."
            )
        if self.labels is None:
            raise ConfigError(
                f"{self.name} ({self.split}) has no class labels, which this protocol needs. "
                "Use it under retrieval, or a reader of kind image_folder or torchvision."
            )
        return self.labels

    def need_multi_labels(self) -> NDArray[np.int8]:
        """Which classes each image has, int8 [N, C]: 1 = present, 0 = absent, -1 = not scored.

        Raises:
            ConfigError: The data set has one class an image, or none.
        """
        if self.multi_labels is None:
            raise ConfigError(
                f"{self.name} ({self.split}) has one class an image, and this metric needs images "
                "of several classes. Use top1_accuracy, or a reader of kind voc."
            )
        return self.multi_labels

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

    def warn_of_left_over(self) -> None:
        """Log what is not measured, if anything is."""
        sentence = self.left_over.sentence()
        if sentence:
            logger.warning("%s (%s): left out: %s", self.name, self.split, sentence)


def shared_images(first: Dataset, second: Dataset) -> list[str]:
    """Ids of the second split's images that are files of the first, too; links are followed.

    A file that is itself a link counts as one of its own.
    """
    folders: dict[str, str] = {}

    def places(dataset: Dataset) -> list[tuple[str, str]]:
        pairs = [os.path.split(path) for path in dataset.image_paths]
        for folder in {folder for folder, _ in pairs} - folders.keys():
            folders[folder] = os.path.realpath(folder)
        return [(folders[folder], name) for folder, name in pairs]

    known = set(places(first))
    pairs = zip(second.sample_ids, places(second), strict=False)  # no paths: no pairs
    return [sample for sample, place in pairs if place in known]


def _is_whole(text: str) -> bool:
    """Whether UTF-8 can hold a text: it has no half of a character."""
    return text.isascii() or text.encode("utf-8", "replace").decode() == text


@dataclass(frozen=True)
class FileImages:
    """Images that are files."""

    paths: Sequence[Path]

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        return decode(self.paths[index], what=shown(self.paths[index]))

    def check(self, index: int) -> None:
        """Read one header; a `DataError` says what is wrong."""
        read_header(self.paths[index], what=shown(self.paths[index]))


@dataclass(frozen=True)
class TarImages:
    """Images inside tar files, read at their offset.

    Attributes:
        members: File, offset and bytes of each image.
        names: Of each image, for messages.
    """

    members: Sequence[tuple[Path, int, int]]
    names: Sequence[str]

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        return decode(self._bytes(index), what=self._what(index))

    def check(self, index: int) -> None:
        """Read one header; a `DataError` says what is wrong."""
        read_header(self._bytes(index), what=self._what(index))

    def _bytes(self, index: int) -> bytes:
        path, offset, size = self.members[index]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise DataError(
                f"Cannot read {self._what(index)} ({error}). Copy or download the shard again."
            ) from None

    def _what(self, index: int) -> str:
        return f"{shown(self.names[index])} in {shown(self.members[index][0])}"


@dataclass(frozen=True)
class ChosenImages:
    """Some images of a split."""

    read: Callable[[int], Image.Image]
    indices: tuple[int, ...]

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        return self.read(self.indices[index])

    def check(self, index: int) -> None:
        """Read one header, where the images are files; a `DataError` says what is wrong."""
        if hasattr(self.read, "check"):
            self.read.check(self.indices[index])


@dataclass(frozen=True)
class IndexedImages:
    """Images of a data set with `[index]` -> (image, label)."""

    images: Any
    chosen: Sequence[int]
    what: str

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        position = self.chosen[index]
        try:
            return to_rgb(self.images[position][0])
        except Exception as error:  # torchvision's readers raise what their libraries raise
            raise DataError(
                f"Cannot read image {position} of {self.what} ({type(error).__name__}: {error}). "
                "It is missing or damaged; unpack the data set again."
            ) from None
