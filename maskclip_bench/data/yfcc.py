"""YFCC15M: SLIP's metadata pickle and the YFCC100M zip archives -> a Parquet table.

SLIP's `make_dataset.py` (repository `facebookresearch/SLIP`) leaves a pickle of tuples
`(number, title, description)`, and its loader reads image `number`, written with eight digits
`aabbbccc`, from member `ccc.jpg` of `images/aa/bbb.zip`. The table names archive and member, and is
read with

    source: {kind: parquet, path: yfcc15m/pairs.parquet, images_root: yfcc15m, image_field: member,
             archive_field: archive, caption_fields: [title, description],
             captions: random_of_fields}

A pickle can run any code when it is loaded, so this one is not trusted: `read_metadata` builds
lists, tuples, texts and numbers, and refuses everything that would need a class or a function.
"""

from __future__ import annotations

import pickle
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from maskclip_bench.errors import DataError
from maskclip_bench.regular_file import open_regular
from maskclip_bench.storage import atomic_file

ROWS_PER_GROUP = 100_000
NUM_DIGITS = 8

SCHEMA = pa.schema(
    [
        ("archive", pa.string()),
        ("member", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
    ]
)


class _BuiltinsOnly(pickle.Unpickler):
    """Unpickles what needs no import: numbers, texts, bytes, None, lists, tuples, dicts, sets."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(file)
        self._name = name

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(
            f"{self._name} asks for {module}.{name}. A metadata pickle holds lists of tuples of "
            "numbers and texts only; this one could run code, and was not loaded. Make it again "
            "with SLIP's make_dataset.py, or get it from a source you trust."
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise DataError(
            f"{self._name} refers to an object outside itself ({pid!r}). A metadata pickle holds "
            "lists of tuples of numbers and texts only."
        )


def read_metadata(path: Path) -> list[tuple[int, str, str]]:
    """Rows (number, title, description) of SLIP's pickle, without running any code of it.

    Raises:
        DataError: It is missing, broken, holds anything but builtins, or rows of another form.
    """
    try:
        with open_regular(path) as file:
            rows = _BuiltinsOnly(file, str(path)).load()
    except DataError:
        raise
    except Exception as error:  # a broken pickle raises almost any exception
        raise DataError(
            f"{path} is no readable pickle ({type(error).__name__}: {error}). It may be cut off: "
            "copy it again."
        ) from None
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}, and a list of rows is needed.")
    for position, row in enumerate(rows):
        if not _is_row(row):
            raise DataError(  # reprlib: a nested row of some bytes may print as gigabytes
                f"Row {position} of {path} is {reprlib.repr(row)[:80]}; rows should be tuples "
                f"(number, title, description), the number of at most {NUM_DIGITS} digits."
            )
    return rows


def convert_metadata(
    metadata: Path,
    output: Path,
    *,
    images: str = "images",
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Write the Parquet table of image archives, members and captions; returns its rows.

    Args:
        metadata: SLIP's `yfcc15m.pkl`.
        output: The table, written atomically.
        images: Folder of the archives, relative to the `images_root` of the recipe.
        progress: Called with ("table", rows done, rows).

    Raises:
        DataError: The metadata is not what `read_metadata` takes.
        StorageError: The disk refused.
    """
    rows = read_metadata(metadata)
    with atomic_file(output) as temporary, pa_parquet.ParquetWriter(temporary, SCHEMA) as writer:
        for begin in range(0, len(rows), ROWS_PER_GROUP):
            group = rows[begin : begin + ROWS_PER_GROUP]
            members = [archive_and_member(number, images=images) for number, _, _ in group]
            writer.write_table(
                pa.table(
                    {
                        "archive": [archive for archive, _ in members],
                        "member": [member for _, member in members],
                        "title": [_valid(title) for _, title, _ in group],
                        "description": [_valid(description) for _, _, description in group],
                    },
                    schema=SCHEMA,
                )
            )
            if progress:
                progress("table", begin + len(group), len(rows))
    return len(rows)


def archive_and_member(number: int, *, images: str = "images") -> tuple[str, str]:
    """Archive and member of image `number`.

    Example:
        >>> archive_and_member(1234567)
        ('images/01/234.zip', '567.jpg')
    """
    digits = f"{number:0{NUM_DIGITS}d}"
    return f"{images}/{digits[:2]}/{digits[2:5]}.zip", f"{digits[5:]}.jpg"


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, (tuple, list))
        and len(row) == 3
        and isinstance(row[0], int)
        and 0 <= row[0] < 10**NUM_DIGITS
        and isinstance(row[1], str)
        and isinstance(row[2], str)
    )


def _valid(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
