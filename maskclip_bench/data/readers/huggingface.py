"""Data sets in Hugging Face's formats, read with their library `datasets` (extra `huggingface`).

`root` is a folder: what `maskclip-bench data prepare hf:ORG/NAME` fetched from the hub, what
`Dataset.save_to_disk` wrote, or any folder that `datasets.load_dataset` reads without code of its
own. Nothing is downloaded here, and no code of a data set is run.

Columns that are not named are found by their type: the image is the first `Image`, the label the
first `ClassLabel`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from maskclip_bench.data.cell_values import captions_of, key_of
from maskclip_bench.data.class_table import ClassTable, table_of_labels
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.data.directory_walk import walk_files
from maskclip_bench.data.images import decode, read_header
from maskclip_bench.data.left_over import examples
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.errors import DataError, MissingDependencyError, did_you_mean
from maskclip_bench.extras import install_command

T = TypeVar("T")

STATE = ("dataset_info.json", "dataset_dict.json")
"""Files by which a folder of `save_to_disk` is known."""


class HuggingFaceSet(ReaderDeclaration):
    """A data set of Hugging Face."""

    kind: Literal["huggingface"] = "huggingface"
    config: str | None = None
    """Name of the configuration, for data sets that have several."""
    image: str | None = None
    """Column of the images; None finds it by its type."""
    label: str | None = None
    """Column of the classes; None finds it by its type."""
    captions: str | None = None
    """Column of the caption, or of a list of captions."""

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable | None:
        """The names in the column's type, or all its values.

        Raises:
            DataError: The splits have other classes, or are the same rows.
        """
        opened = [self._open(split, root, what) for split in splits]
        if len(splits) > 1 and _holds_one_split(root):
            raise DataError(
                f"{what}: {root} holds one split, and {', '.join(splits)} would all be its rows. "
                "Save all splits together (DatasetDict.save_to_disk), or declare one split."
            )
        columns = [self._label(dataset, what) for dataset in opened]
        labelled = [
            (data, column, f"{what} ({split})")
            for data, column, split in zip(opened, columns, splits, strict=True)
            if column is not None
        ]
        if not labelled:
            return None
        source = f"the label column of {root}"
        lists = {_class_names(data, column) for data, column, _ in labelled}
        if lists == {()}:
            keys = {key for each in labelled for key in self._keys(*each)}
            return table_of_labels(keys, source=source)
        if len(lists) > 1:
            raise DataError(
                f"{what}: the splits {', '.join(splits)} of {root} have other classes, or the same "
                "in another order, so their labels do not mean the same. Cast the label column of "
                "all of them to one ClassLabel."
            )
        (names,) = lists
        return ClassTable(names, names, source=source)

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        opened = self._open(split, root, what)
        image, label = self._image(opened, what), self._label(opened, what)
        labels = None
        if label is not None:
            assert classes is not None
            if _class_names(opened, label):
                values = [-1 if value is None else value for value in opened[label]]
            else:
                keys = self._keys(opened, label, f"{what} ({split})")
                values = classes.labels_of(keys, what=what, noun="labels")
            labels = np.array(values, dtype=np.int64)
        ids = [f"{index:08d}" for index in range(len(opened))]
        listed = walk_files(root, wanted=lambda name: not name.endswith(".lock")).files
        return Dataset(
            name=what,
            split=split,
            sample_ids=ids,
            groups=list(ids),
            read=HubImages(_undecoded(opened, image), image, f"{what} ({split})"),
            files=[file.path for file in listed],
            labels=labels,
            classes=classes,
            captions=self._captions(opened, what),
            identity=[self.config, image, label, self.captions, [file.name for file in listed]],
        )

    def _open(self, split: str, root: Path, what: str) -> Any:
        """The library's own object for a split.

        Raises:
            MissingDependencyError: `datasets` is not installed.
            DataError: The folder cannot be read, or has no such split.
        """
        try:
            import datasets
        except ImportError as error:
            raise MissingDependencyError(
                f"Data sets of Hugging Face need their library: {install_command('huggingface')}"
            ) from error
        try:
            with _quiet(datasets):
                if any((root / name).is_file() for name in STATE):
                    opened = datasets.load_from_disk(str(root))
                else:
                    opened = datasets.load_dataset(str(root), self.config)
        except Exception as error:  # the library raises what its readers raise
            raise DataError(
                f"{what}: the library datasets cannot open {root} ({type(error).__name__}): "
                f"{' '.join(str(error).split())[:400]}"
            ) from error
        if isinstance(opened, datasets.Dataset):
            return opened
        if split not in opened:
            raise DataError(
                f"{what}: {root} has no split {split!r}.{did_you_mean(split, opened)} It has: "
                f"{', '.join(opened)}. Correct `splits`."
            )
        return opened[split]

    def _image(self, opened: Any, what: str) -> str:
        found = self.image or _first(opened, "Image")
        return self._known(found, opened, what, "images", "image")

    def _label(self, opened: Any, what: str) -> str | None:
        found = self.label or _first(opened, "ClassLabel")
        return None if found is None else self._known(found, opened, what, "classes", "label")

    def _captions(self, opened: Any, what: str) -> list[list[str]] | None:
        if self.captions is None:
            return None
        column = self._known(self.captions, opened, what, "captions", "captions")
        captions = _values(opened, column, captions_of, what, remedy="Name another column.")
        bare = [index for index, texts in enumerate(captions) if not texts]
        if bare:
            raise DataError(
                f"{what}: {len(bare)} of {len(captions)} rows have no caption, e.g. row "
                f"{examples(bare)}. Remove them, or name another column."
            )
        return captions

    @staticmethod
    def _keys(opened: Any, column: str, where: str) -> list[str]:
        """The labels of a column without a list of classes, as texts.

        Raises:
            DataError: One is missing, or neither a text nor a whole number.
        """
        remedy = "Name another column with `label`."
        keys = _values(opened, column, key_of, where, remedy=remedy)
        bare = [row for row, key in enumerate(keys) if not key.strip()]
        if bare:
            raise DataError(
                f"{where}: {len(bare)} of {len(keys)} rows have no {column!r}, e.g. row "
                f"{examples(bare)}. Remove them."
            )
        return keys

    @staticmethod
    def _known(column: str | None, opened: Any, what: str, noun: str, key: str) -> str:
        """The column, if there is one.

        Raises:
            DataError: There is none.
        """
        if column is None or column not in opened.features:
            hint = did_you_mean(column, opened.features) if column else ""
            raise DataError(
                f"{what}: no column of {noun}{f' {column!r}' if column else ''}.{hint} The columns "
                f"are {', '.join(opened.features)}. Name it with `{key}`."
            )
        return column


def _values(
    opened: Any, column: str, read: Callable[[Any], T], where: str, *, remedy: str
) -> list[T]:
    """The values of a column as `read` understands them.

    Raises:
        DataError: One is nothing that it understands.
    """
    values = []
    for row, value in enumerate(opened[column]):
        try:
            values.append(read(value))
        except ValueError as error:
            raise DataError(f"{where}: row {row}, column {column!r}: {error}. {remedy}") from None
    return values


def _holds_one_split(root: Path) -> bool:
    """Whether the folder is of `Dataset.save_to_disk`, which gives the same rows for any split."""
    return (root / STATE[0]).is_file() and not (root / STATE[1]).is_file()


def _class_names(opened: Any, column: str) -> tuple[str, ...]:
    """The names in a column's type; empty for a column of plain values."""
    return tuple(getattr(opened.features[column], "names", None) or ())


def _first(opened: Any, kind: str) -> str | None:
    """The first column of a type, by the name of the type."""
    return next((n for n, f in opened.features.items() if type(f).__name__ == kind), None)


def _undecoded(opened: Any, image: str) -> Any:
    """Only the column of images, as bytes or paths: `data.images` is the one decoder."""
    import datasets

    opened = opened.select_columns([image])
    if type(opened.features[image]).__name__ == "Image":
        opened = opened.cast_column(image, datasets.Image(decode=False))
    return opened


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's progress bars, and without the network."""
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            datasets.utils.logging.enable_progress_bar()


@dataclass(frozen=True)
class HubImages:
    """Images of a data set of the library.

    Attributes:
        rows: The library's object with the one column.
        column: Its name.
        what: Name of the data set, for messages.
    """

    rows: Any
    column: str
    what: str

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        return decode(self._source(index), what=f"image {index} of {self.what}")

    def check(self, index: int) -> None:
        """Read one header; a `DataError` says what is wrong."""
        read_header(self._source(index), what=f"image {index} of {self.what}")

    def _source(self, index: int) -> Path | bytes:
        value = self.rows[index][self.column]
        if isinstance(value, dict):
            return value["bytes"] or Path(value["path"] or "")
        return value if isinstance(value, bytes) else Path(str(value or ""))
