"""Images that a table names, or holds: CSV, TSV, JSON lines or Parquet.

    reader: {kind: table, root: hateful_memes, file: "{split}.jsonl", image: img, label: label}

Labels that are whole numbers are class indices; others are the names of their classes. In Parquet
the column of images may hold the files themselves: bytes, or Hugging Face's `{bytes, path}`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from maskclip_bench.data.cell_values import captions_of, key_of
from maskclip_bench.data.class_table import ClassTable, read_class_table, table_of_labels
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.images import decode, read_header
from maskclip_bench.data.left_over import check_present, examples, shown
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.text_files import parse_json, read_lines, read_table
from maskclip_bench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


class Table(ReaderDeclaration):
    """Images listed in a table, with labels, captions or both."""

    kind: Literal["table"] = "table"
    file: str
    """The table below the root; `{split}` in it is the name of the split."""
    image: str = "path"
    """Column of the images: paths below `images`, or in Parquet the files themselves."""
    images: str = "."
    """Folder of the images below the root."""
    label: str | None = None
    """Column of the class of each image."""
    captions: list[str] = Field(default_factory=list)
    """Columns of captions; rows of one image are one sample with all of their captions."""
    split_column: str | None = None
    """Column that says which split a row is of, where one table holds all."""
    classes: str | None = None
    """File below the root with the classes in index order; see `image_folder`."""

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The table and the folder of images."""
        return [root, self._file(root, split), root / self.images]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable | None:
        """From the declared list, or from the labels of all splits."""
        if self.label is None:
            return None
        if self.classes is not None:
            return read_class_table(root / self.classes)
        labels = {label for split in splits for label in self._rows(root, split, what)[self.label]}
        return table_of_labels(labels, source=f"the column {self.label!r} of {self.file}")

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        path = self._file(root, split)
        rows = self._rows(root, split, what)
        captions = None
        if self.captions:
            rows, captions = self._grouped(rows, path, what)
        labels = None
        if self.label is not None:
            assert classes is not None
            keys = list(rows[self.label])
            labels = np.array(classes.labels_of(keys, what=what, noun="labels"), dtype=np.int64)
        held = "row" in rows
        names = list(rows[self.image])
        paths = [] if held else [root / self.images / name for name in names]
        if not held:
            where = f"of {path.name} are not in {root / self.images}"
            remedy = f"Correct `images`, or the column {self.image!r}."
            check_present(names, paths, what=what, where=where, remedy=remedy)
        read = HeldImages(path, self.image, tuple(rows["row"])) if held else FileImages(paths)
        return Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=list(names),
            read=read,
            files=[path, *paths],
            labels=labels,
            classes=classes,
            captions=captions,
            image_paths=paths,
        )

    def _file(self, root: Path, split: str) -> Path:
        return root / self.file.replace("{split}", split)

    def _rows(self, root: Path, split: str, what: str) -> pd.DataFrame:
        """The wanted columns of a split as texts, captions as lists of texts.

        `row` counts rows that hold their image.

        Raises:
            DataError: The table is broken, a column is missing, or a value is empty.
        """
        path = self._file(root, split)
        wanted = [self.image, *([self.label] if self.label else []), *self.captions]
        wanted += [self.split_column] if self.split_column else []
        rows = self._as_texts(_read(path, wanted, self.image, what), path, what)
        if self.split_column is not None:
            known = sorted(set(rows[self.split_column]))
            rows = rows[rows[self.split_column] == split]
            if not len(rows):
                raise DataError(
                    f"{what}: no row of {path} is of the split {split!r}; the column "
                    f"{self.split_column!r} has {examples(known)}. Correct `splits`."
                )
        for column in [self.image, *([self.label] if self.label else [])]:
            empty = sum(not value.strip() for value in rows[column])
            if empty:
                raise DataError(
                    f"{what}: {empty} of {len(rows)} rows of {path} have no {column!r}. Fill the "
                    "column, or remove the rows."
                )
        return rows

    def _as_texts(self, rows: pd.DataFrame, path: Path, what: str) -> pd.DataFrame:
        """Captions as lists, everything else as texts.

        Raises:
            DataError: A value is neither a text nor, but for captions, a whole number.
        """
        for column in rows.columns:
            if column == "row":
                continue
            read: Callable[[Any], Any] = captions_of if column in self.captions else key_of
            values = []
            for number, value in enumerate(rows[column].tolist()):
                try:
                    values.append(read(value))
                except ValueError as error:
                    raise DataError(
                        f"{what}: row {number + 1} of {path}, column {column!r}: {error}. Correct "
                        "the table, or name another column."
                    ) from None
            rows = rows.assign(**{column: _objects(values)})
        if "row" not in rows:
            rows = rows.assign(**{self.image: [*map(_normal, rows[self.image])]})
        return rows

    def _grouped(
        self, rows: pd.DataFrame, path: Path, what: str
    ) -> tuple[pd.DataFrame, list[list[str]]]:
        """One row an image, and its captions in the order of the table."""
        captions: dict[str, list[str]] = {}
        for values in rows[[self.image, *self.captions]].itertuples(index=False, name=None):
            found = captions.setdefault(values[0], [])
            found += [text for texts in values[1:] for text in texts]
        bare = [name for name, found in captions.items() if not found]
        if bare:
            raise DataError(
                f"{what}: {len(bare)} images of {path} have no caption, e.g. {examples(bare)}. "
                "Remove them, or give them captions."
            )
        first = rows.drop_duplicates(self.image, keep="first")
        if self.label is not None:
            labelled = rows[[self.image, self.label]].drop_duplicates()
            torn = labelled.loc[labelled[self.image].duplicated(), self.image]
            if len(torn):
                raise DataError(
                    f"{what}: {len(torn)} images of {path} have rows of several classes, e.g. "
                    f"{examples(torn)}. Give all rows of an image one class."
                )
        return first, [captions[name] for name in first[self.image]]


def _normal(name: str) -> str:
    """One way to write a path: `./a.jpg` is `a.jpg`."""
    return posixpath.normpath(name) if name.strip() else name


def _objects(values: Sequence[Any]) -> pd.Series:
    """Values as they are: pandas makes floats, dates or columns of some."""
    import pandas as pd

    return pd.Series(values, dtype=object)


def _read(path: Path, wanted: Sequence[str], image: str, what: str) -> pd.DataFrame:
    """Columns of a table, values as they are in it.

    Raises:
        DataError: It cannot be read, or lacks a column.
    """
    import pandas as pd

    if path.suffix in (".csv", ".tsv"):
        return read_table(path, columns=list(dict.fromkeys(wanted))).to_pandas()
    if path.suffix == ".jsonl":
        rows = _json_rows(path, wanted, what)
        return pd.DataFrame({name: _objects([row[name] for row in rows]) for name in wanted})
    if path.suffix == ".parquet":
        return _parquet_rows(path, wanted, image, what)
    raise DataError(
        f"{what}: {path} is no table that can be read here. Its name should end with "
        f"{', '.join(SUFFIXES)}."
    )


def _json_rows(path: Path, wanted: Sequence[str], what: str) -> list[dict[str, Any]]:
    """The wanted values of one JSON object a line."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            found = parse_json(line)
            rows.append({key: found[key] for key in wanted})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{what}: line {number} of {path} gives no {', '.join(wanted)} "
                f"({type(error).__name__}: {error}). It should be a JSON object with these keys."
            ) from None
    return rows


def _parquet_rows(path: Path, wanted: Sequence[str], image: str, what: str) -> pd.DataFrame:
    """The wanted columns; of images that the file holds only the name, and the row."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        missing = [name for name in wanted if name not in schema.names]
        if missing:
            raise DataError(
                f"{what}: {path} has no column {missing[0]!r}."
                f"{did_you_mean(missing[0], schema.names)} It has: {', '.join(schema.names)}."
            )
        kind = schema.field(image).type
        held = (
            pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        )
        columns = [name for name in dict.fromkeys(wanted) if not (held and name == image)]
        table = pq.read_table(path, columns=columns)
        number = pq.read_metadata(path).num_rows
        frame = pd.DataFrame(
            {name: _objects(table.column(name).to_pylist()) for name in columns},
            index=range(number),
        )
        if held:
            frame[image] = _held_names(path, image, number, in_struct=pa.types.is_struct(kind))
            frame["row"] = range(number)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{what}: {path} is no Parquet table that can be read ({type(error).__name__}: "
            f"{error}). Copy it again."
        ) from None
    return frame


def _held_names(path: Path, image: str, number: int, *, in_struct: bool) -> list[str]:
    """A unique name for each image: that in `{bytes, path}`, or its row."""
    import pyarrow.parquet as pq

    rows = [f"{row:08d}" for row in range(number)]
    if not in_struct:
        return rows
    try:
        column = pq.read_table(path, columns=[f"{image}.path"]).column(0)
    except (KeyError, ValueError, OSError):
        return rows
    paths = [item.get("path") if isinstance(item, dict) else item for item in column.to_pylist()]
    named = [PurePosixPath(str(path or "")).name for path in paths]
    return named if all(named) and len(set(named)) == len(named) else rows


@dataclass(frozen=True)
class HeldImages:
    """Images inside a Parquet file.

    Attributes:
        path: The file.
        column: Of the images.
        rows: Row of each image.
    """

    path: Path
    column: str
    rows: tuple[int, ...]

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        return decode(self._bytes(index), what=self._what(index))

    def check(self, index: int) -> None:
        """Read one header; a `DataError` says what is wrong."""
        read_header(self._bytes(index), what=self._what(index))

    def _what(self, index: int) -> str:
        return f"row {self.rows[index]} of {shown(self.path)}"

    def _bytes(self, index: int) -> bytes:
        stamp = self.path.stat().st_mtime_ns  # a file that was replaced is read again
        group, offset = _position(self.path, stamp, self.rows[index])
        value = _row_group(self.path, stamp, self.column, group)[offset].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            raise DataError(f"{self._what(index)} holds no image. Make the table again.")
        return bytes(content)


@lru_cache(maxsize=8)
def _starts(path: Path, stamp: int) -> list[int]:
    """First row of each row group, and the number of rows."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return [0, *np.cumsum(sizes).tolist()]


def _position(path: Path, stamp: int, row: int) -> tuple[int, int]:
    """Row group of a row, and its place in it."""
    starts = _starts(path, stamp)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    return group, row - starts[group]


@lru_cache(maxsize=2)
def _row_group(path: Path, stamp: int, column: str, group: int) -> Any:
    """The column of images of one row group."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(group, columns=[column]).column(0)
