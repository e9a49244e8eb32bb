"""Data sets in Hugging Face's formats, read with their library `datasets` (extra `huggingface`).

`root` is a folder: what `maskclip-bench data prepare hf:ORG/NAME` fetched from the hub, what
`Dataset.save_to_disk` wrote, or any folder that `datasets.load_dataset` reads without code of its
own. Nothing is downloaded here, and no code of a data set is run.

Columns that are not named are found by their type: the image is the first `Image`, the label the
first `ClassLabel`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from maskclip_bench.data.class_table import ClassTable, table_of_indices
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.data.directory_walk import walk_files
from maskclip_bench.data.images import decode, read_header
from maskclip_bench.data.left_over import examples
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.errors import DataError, MissingDependencyError, did_you_mean
from maskclip_bench.extras import install_command

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
        """The names in the column's type, or all its values."""
        opened = [self._open(split, root, what) for split in splits]
        columns = [self._label(dataset, what) for dataset in opened]
        if columns[0] is None:
            return None
        names = getattr(opened[0].features[columns[0]], "names", None)
        source = f"the column {columns[0]!r} of {root}"
        if names:
            return ClassTable(tuple(names), tuple(names), source=source)
        values = {v for data, column in zip(opened, columns, strict=True) for v in data[column]}
        if all(isinstance(value, int) for value in values):
            return table_of_indices(values, source=source)
        found = tuple(sorted(map(str, values)))
        return ClassTable(found, found, source=source)

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        opened = self._open(split, root, what)
        image, label = self._image(opened, what), self._label(opened, what)
        labels = None
        if label is not None:
            assert classes is not None
            values = list(opened[label])
            if values and isinstance(values[0], str):
                values = classes.labels_of(values, what=what, noun="labels")
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
        captions = []
        for value in opened[column]:
            texts = [value] if isinstance(value, str) else list(value or ())
            captions.append([text for text in (" ".join(t.split()) for t in texts) if text])
        bare = [index for index, texts in enumerate(captions) if not texts]
        if bare:
            raise DataError(
                f"{what}: {len(bare)} of {len(captions)} rows have no caption, e.g. row "
                f"{examples(bare)}. Remove them, or name another column."
            )
        return captions

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
