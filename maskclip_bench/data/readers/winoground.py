"""Winoground: pairs of images and pairs of captions with the same words in another order.

The Hugging Face repository `facebook/winoground` has had two layouts, and both are read, in the
root or in `data/` below it:

- `examples.jsonl` and the unpacked `images.zip`: `images/ex_0_img_0.png`;
- `test-00000-of-00001.parquet`, whose columns `image_0` and `image_1` hold the files.

The other columns are the same. An example gives two samples, an image with its caption each, one
after the other, of one group. Classes are the tags Object, Relation and Both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.left_over import check_present
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.readers.table import HeldImages
from maskclip_bench.data.text_files import parse_json, read_lines
from maskclip_bench.errors import DataError

EXAMPLES = "examples.jsonl"
TABLES = "test-*.parquet"
SIDES = (0, 1)
TEXTS = ("caption_0", "caption_1", "collapsed_tag", "id")
IMAGES = ("image_0", "image_1")


class Winoground(ReaderDeclaration):
    """Examples of two images and two captions; there is only a `test` split."""

    kind: Literal["winoground"] = "winoground"

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The tables, or the list of examples and the folder of images."""
        folder = _folder(root)
        return [root, *(_tables(folder) or [folder / EXAMPLES, folder / "images"])]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable:
        """The tags that occur, sorted."""
        folder = _folder(root)
        rows = [row for table in _tables(folder) for row in _held_rows(table, what)]
        rows = rows or _rows(folder / EXAMPLES, what)
        tags = tuple(sorted({str(row["collapsed_tag"]) for row in rows}))
        return ClassTable(tags, tags, source=str(folder))

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        assert classes is not None
        folder = _folder(root)
        tables = _tables(folder)
        read: FileImages | PairedImages
        if tables:
            parts = [_held_rows(table, what) for table in tables]
            rows = [row for part in parts for row in part]
            read = PairedImages(
                tuple(
                    HeldImages(table, column, tuple(range(len(part))))
                    for table, part in zip(tables, parts, strict=True)
                    for column in IMAGES
                )
            )
            files, paths = tables, []
        else:
            rows = _rows(folder / EXAMPLES, what)
            paths = _image_files(rows, folder, what)
            read, files = FileImages(paths), [folder / EXAMPLES, *paths]
        sides = [(row, side) for row in rows for side in SIDES]
        tags = [str(row["collapsed_tag"]) for row, _ in sides]
        return Dataset(
            name=what,
            split=split,
            sample_ids=[f"{row['id']}/{side}" for row, side in sides],
            groups=[str(row["id"]) for row, _ in sides],
            read=read,
            files=files,
            labels=np.array(classes.labels_of(tags, what=what, noun="tags"), dtype=np.int64),
            classes=classes,
            captions=[[str(row[f"caption_{side}"])] for row, side in sides],
            image_paths=paths,
        )


@dataclass(frozen=True)
class PairedImages:
    """Images of the first and the second column in turn, example by example.

    Attributes:
        columns: Of each table the first column and the second.
    """

    columns: tuple[HeldImages, ...]

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        column, row = self._place(index)
        return column(row)

    def check(self, index: int) -> None:
        """Read one header; a `DataError` says what is wrong."""
        column, row = self._place(index)
        column.check(row)

    def _place(self, index: int) -> tuple[HeldImages, int]:
        row, side = divmod(index, 2)
        table = 0
        while row >= len(self.columns[table].rows):
            row -= len(self.columns[table].rows)
            table += 2
        return self.columns[table + side], row


def _folder(root: Path) -> Path:
    """The root, or `data/` in it where the files are there, as in the repository."""
    inner = root / "data"
    return inner if _tables(inner) or (inner / EXAMPLES).is_file() else root


def _tables(folder: Path) -> list[Path]:
    return sorted(folder.glob(TABLES))


def _image_files(rows: Sequence[dict[str, Any]], folder: Path, what: str) -> list[Path]:
    """The file of each image, example by example.

    Raises:
        DataError: Some are not there.
    """
    names = [str(row[column]) for row in rows for column in IMAGES]
    paths = [folder / "images" / (name if "." in name else f"{name}.png") for name in names]
    check_present(
        [path.name for path in paths],
        paths,
        what=what,
        where=f"of {EXAMPLES} are not in {folder / 'images'}",
        remedy="Unpack images.zip again.",
    )
    return paths


def _held_rows(path: Path, what: str) -> list[dict[str, Any]]:
    """The examples of a table, without their images.

    Raises:
        DataError: It cannot be read, lacks a column, or has no example.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        missing = sorted({*TEXTS, *IMAGES} - set(pq.read_schema(path).names))
        rows = [] if missing else pq.read_table(path, columns=list(TEXTS)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{what}: {path} is no Parquet table that can be read ({type(error).__name__}: "
            f"{error}). Download it again."
        ) from None
    broken = next((index for index, row in enumerate(rows) if not _is_whole(row)), None)
    if missing or not rows or broken is not None:
        problem = f"has no column {', '.join(missing)}" if missing else "has no example"
        if broken is not None:
            problem = f"lacks one of {', '.join(TEXTS)} in row {broken}"
        raise DataError(f"{what}: {path} {problem}. Download it again.")
    return rows


def _is_whole(row: dict[str, Any]) -> bool:
    """Whether an example says all that it should: its number, and texts that are not empty."""
    texts = [row[name] for name in TEXTS if name != "id"]
    said = all(isinstance(text, str) and text.strip() for text in texts)
    return said and isinstance(row["id"], (int, str)) and not isinstance(row["id"], bool)


def _rows(path: Path, what: str) -> list[dict[str, Any]]:
    """The examples of the list.

    Raises:
        DataError: A line is none.
    """
    rows = []
    needed = {*TEXTS, *IMAGES}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not needed <= set(row) or not _is_whole(row):
            raise DataError(
                f"{what}: line {number} of {path} is no example. It should be JSON with "
                f"{', '.join(sorted(needed))}, none of them empty. Download it again."
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{what}: {path} has no example. Download it again.")
    return rows
