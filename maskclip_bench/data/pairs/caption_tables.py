"""CSV, TSV and Parquet tables of image paths and captions; images are files, or zip members.

Zip members are read by their offset, found once in the archive's directory, so no archive is opened
and listed again for every image.
"""

from __future__ import annotations

import struct
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.parquet as pa_parquet

from maskclip_bench.data.pair_config import SourceConfig
from maskclip_bench.data.pairs import pair_sources as sources
from maskclip_bench.data.pairs.byte_ranges import MAX_BYTES, FileReader, inflate
from maskclip_bench.data.pairs.pair_files import (
    PairFile,
    count_files,
    expected_counts,
    list_files,
)
from maskclip_bench.data.pairs.pair_index import Index, cached_index
from maskclip_bench.data.pairs.pair_sources import BadSampleError, BadSamples, RawPair
from maskclip_bench.data.text_files import BrokenRow, read_table
from maskclip_bench.errors import DataError, did_you_mean
from maskclip_bench.regular_file import open_regular, status_of

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Header before each member of a zip; its last two numbers are the lengths of name and extra."""

LOCAL_MAGIC = b"PK\x03\x04"
MISSING = -1
"""Offset of a member that its archive does not have."""

RANGE_COLUMNS = ("offset", "packed_size", "size", "method")
"""Columns of the index that say where a zip member is; its compression method is zip's number."""

Range = tuple[int, int, int, int]


class TableSource:
    """Samples of tables (see `PairSource`)."""

    def __init__(self, config: SourceConfig, *, data_root: Path) -> None:
        self._config = config
        self._root = data_root / config.images_root
        self._files = list_files(config.path, data_root=data_root)
        self._reader = FileReader()
        settings = {
            "kind": config.kind,
            "image": config.image_field,
            "archive": [config.archive_field, str(self._root)],
            "captions": config.caption_fields,
            "separator": config.separator,
            "quoting": config.quoting,
        }
        index = cached_index(self._files, settings, self._build, data_root=data_root)
        self.part_sizes: Sequence[int] = index.part_sizes
        self.lost = index.lost
        self.noted = index.noted
        table = index.table.combine_chunks()
        self._images = table["image"].combine_chunks()
        self._captions = [
            table[f"captions_{number}"].combine_chunks()
            for number in range(len(config.caption_fields))
        ]
        self._table_numbers = table["table"].to_numpy()  # [N]
        self._archives = table["archive"].combine_chunks() if config.archive_field else None
        if config.archive_field:
            self._ranges = [table[name].to_numpy() for name in RANGE_COLUMNS]  # each [N]

    def __len__(self) -> int:
        return len(self._table_numbers)

    def shard(self, index: int) -> str:
        """Name of the archive of a sample, or of its table."""
        if self._archives is not None:
            return str(self._archives[index].as_py())
        return self._files[self._table_numbers[index]].name

    def files(self) -> list[tuple[str, Path]]:
        """The tables by name, in order, then the archives."""
        files = [(file.name, file.path) for file in self._files]
        archives = [] if self._archives is None else self._archives.unique().to_pylist()
        return files + [(str(name), self._root / str(name)) for name in sorted(archives)]

    def image_files(self) -> list[Path]:
        """The images, unless they are in archives."""
        if self._archives is not None:
            return []
        return [self._root / str(name) for name in self._images.to_pylist()]

    def read(self, index: int) -> RawPair:
        """Read image and captions of a sample.

        Raises:
            BadSampleError: There is no such file, or it cannot be read.
        """
        name = str(self._images[index].as_py())
        captions = [sources.as_captions(column[index].as_py()) for column in self._captions]
        try:
            if self._archives is None:
                return RawPair(name, self._image(name), captions)
            archive = str(self._archives[index].as_py())
            return RawPair(f"{archive}/{name}", self._member(archive, index), captions)
        except (OSError, DataError) as error:
            raise BadSampleError(sources.NO_IMAGE, str(error)) from None

    def _image(self, name: str) -> bytes:
        with open_regular(self._root / name) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise BadSampleError(sources.BROKEN_IMAGE, f"{name} has more than {MAX_BYTES:,} bytes")
        return data

    def _member(self, archive: str, index: int) -> bytes:
        offset, packed_size, size, method = (int(column[index]) for column in self._ranges)
        path = self._root / archive
        header = self._reader.read(path, offset, LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or not header.startswith(LOCAL_MAGIC):
            raise BadSampleError(sources.BROKEN_IMAGE, f"no zip member at {offset} of {archive}")
        name_size, extra_size = LOCAL_HEADER.unpack(header)[-2:]
        start = offset + LOCAL_HEADER.size + name_size + extra_size
        data = self._reader.read(path, start, packed_size)
        return data if method == zipfile.ZIP_STORED else inflate(data, size=size)

    def _build(self) -> Index:
        lost = BadSamples()
        tables: list[pa.Table] = []
        part_sizes = [0] * (max(file.part for file in self._files) + 1)
        missing: list[PairFile] = []
        archives: set[str] = set()
        for number, file in enumerate(self._files):
            if not file.path.exists():
                missing.append(file)
                continue
            table = _without_nulls(
                self._columns(self._read_table(file, lost), number, file), lost, file
            )
            if self._config.archive_field:
                archives.update(table["archive"].unique().to_pylist())
                table = self._with_ranges(table, lost)
            tables.append(table)
            part_sizes[file.part] += len(table)
        expected = expected_counts(self._files)
        average = sum(map(len, tables)) // len(tables) if tables else 1
        for file in missing:
            lost.add(file.name, sources.MISSING_SHARD, max(1, expected.get(file.path, average)))
        if not tables:
            names = ", ".join(file.name for file in missing[:5])
            raise DataError(
                f"None of the tables of data.source.path exists: {names}. Put them below the data "
                "root, or correct the path."
            )
        dependencies = count_files(self._files)
        dependencies += [self._root / archive for archive in sorted(archives)]
        table = pa.concat_tables(tables, promote_options="permissive")
        return Index(table, part_sizes, lost, dependencies=dependencies)

    def _read_table(self, file: PairFile, lost: BadSamples) -> pa.Table:
        config = self._config
        archive = [config.archive_field] if config.archive_field else []
        wanted = [config.image_field, *archive, *config.caption_fields]
        if config.kind == "parquet":
            return _read_parquet(file, wanted)

        def count(row: BrokenRow) -> None:
            example = f"line {row.line}: {row.reason}"
            lost.add(file.name, sources.BROKEN_ROW, row.num_lines, example=example)

        return read_table(
            file.path,
            columns=wanted,
            delimiter=config.separator,
            quoting=config.quoting,
            on_broken=count,
        )

    def _columns(self, table: pa.Table, number: int, file: PairFile) -> pa.Table:
        """The table under the names and types of the index."""
        config = self._config
        columns: dict[str, Any] = {
            "image": _as_text(table[config.image_field], config.image_field, file),
            "table": pa.array(np.full(len(table), number, dtype=np.int32)),
        }
        if config.archive_field:
            columns["archive"] = _as_text(table[config.archive_field], config.archive_field, file)
        for number_of_field, name in enumerate(config.caption_fields):
            column = table[name]
            if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
                columns[f"captions_{number_of_field}"] = column.cast(
                    pa.large_list(pa.large_string())
                )
            else:
                columns[f"captions_{number_of_field}"] = _as_text(column, name, file)
        return pa.table(columns)

    def _with_ranges(self, table: pa.Table, lost: BadSamples) -> pa.Table:
        """Add where each zip member is; rows without one are dropped and counted."""
        archives = table["archive"].to_pylist()
        members = table["image"].to_pylist()
        rows_of: dict[str, list[int]] = {}
        for row, archive in enumerate(archives):
            rows_of.setdefault(str(archive), []).append(row)
        ranges: npt.NDArray[np.int64] = np.full(
            (len(table), len(RANGE_COLUMNS)), MISSING, dtype=np.int64
        )
        for archive, rows in rows_of.items():
            directory, problem, detail = _zip_directory(self._root / archive)
            if problem:
                lost.add(archive, problem, len(rows), example=detail)
                continue
            for row in rows:
                found = directory.get(members[row])
                if found is None:
                    lost.add(archive, sources.NO_IMAGE, example=members[row])
                else:
                    ranges[row] = found
        for number, name in enumerate(RANGE_COLUMNS):
            table = table.append_column(name, pa.array(ranges[:, number]))
        return table.filter(pa.array(ranges[:, 0] != MISSING))


def _zip_directory(path: Path) -> tuple[dict[str, Range], str | None, str]:
    """Member -> its range in a zip; the reason why it cannot be read, and the reason in words.

    Of two members with one name neither is used: it is not known which is meant.
    """
    try:
        status_of(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, DataError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        if not path.exists():
            return {}, sources.MISSING_SHARD, ""
        return {}, sources.BROKEN_SHARD, str(error)
    counts = Counter(info.filename for info in members)
    usable = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return (
        {
            info.filename: (
                info.header_offset,
                info.compress_size,
                info.file_size,
                info.compress_type,
            )
            for info in members
            if info.compress_type in usable and counts[info.filename] == 1
        },
        None,
        "",
    )


def _read_parquet(file: PairFile, wanted: Sequence[str]) -> pa.Table:
    """The wanted columns of a Parquet file.

    Raises:
        DataError: It cannot be read, or lacks a column.
    """
    try:
        with open_regular(file.path) as opened:
            parquet = pa_parquet.ParquetFile(opened)
            _check_columns(wanted, parquet.schema_arrow.names, file)
            table = parquet.read(columns=list(dict.fromkeys(wanted)))
            table.validate(full=True)
            return table
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise DataError(
            f"{file.name} cannot be read as parquet: {str(error).splitlines()[0][:300]}. It may be "
            "damaged or cut off: copy it again, or correct data.source.kind."
        ) from None


def _check_columns(wanted: Sequence[str], present: Sequence[str], file: PairFile) -> None:
    for name in wanted:
        if name not in present:
            raise DataError(
                f"{file.name} has no column {name!r}.{did_you_mean(name, present)} It has: "
                f"{', '.join(present)}. Name its columns in data.source.image_field, "
                "archive_field and caption_fields."
            )
        if list(present).count(name) > 1:
            raise DataError(f"{file.name} has two columns {name!r}. Rename one of them.")


def _without_nulls(table: pa.Table, lost: BadSamples, file: PairFile) -> pa.Table:
    """The rows that name an image (and an archive); the others are counted."""
    good: npt.NDArray[np.bool_] = np.ones(len(table), dtype=np.bool_)
    for name in ("image", "archive"):
        if name in table.column_names:
            named = pa_compute.fill_null(pa_compute.not_equal(table[name], ""), False)
            good &= named.to_numpy()
    num_bad = int((~good).sum())
    if num_bad:
        example = f"row {int(np.flatnonzero(~good)[0]) + 1} names no image"
        lost.add(file.name, sources.BROKEN_ROW, num_bad, example=example)
    return table.filter(pa.array(good)) if num_bad else table


def _as_text(column: pa.ChunkedArray, name: str, file: PairFile) -> pa.ChunkedArray:
    try:
        return column.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(
            f"Column {name!r} of {file.name} holds {column.type}, and a text (or, for captions, a "
            "list of texts) is needed."
        ) from None
