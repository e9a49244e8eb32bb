"""CSV, TSV and Parquet tables of image paths and captions; images are files, or zip members.

Zip members are read by position, found once in the archive's directory, so no archive is opened
and listed again for every image.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from maskclip_bench.data.config import SourceConfig
from maskclip_bench.data.pairs import pair_sources as sources
from maskclip_bench.data.pairs.pair_sources import (
    BadSampleError,
    BadSamples,
    FileReader,
    Index,
    RawPair,
    ShardFile,
)
from maskclip_bench.errors import DataError, did_you_mean

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Header before each member of a zip; its last two numbers are the lengths of name and extra."""

LOCAL_MAGIC = b"PK\x03\x04"
MISSING = -1
"""Position of a member that its archive does not have."""

NUM_PLACES = 4
"""Numbers that say where a zip member lies: position, packed size, size, method."""


class TableSource:
    """Samples of tables (see `sources.Source`)."""

    def __init__(self, config: SourceConfig, *, data_root: Path) -> None:
        self._config = config
        self._root = data_root / config.images_root
        self._files = sources.list_files(config.path, data_root=data_root)
        self._reader = FileReader()
        settings = {
            "kind": config.kind,
            "image": config.image_field,
            "archive": [config.archive_field, str(self._root)],
            "captions": config.caption_fields,
            "separator": config.separator,
        }
        index = sources.cached_index(self._files, settings, self._build, data_root=data_root)
        self.part_sizes: Sequence[int] = index.part_sizes
        self.lost = index.lost
        table = index.table.combine_chunks()
        self._images = table["image"].combine_chunks()
        self._captions = [
            table[f"captions_{number}"].combine_chunks()
            for number in range(len(config.caption_fields))
        ]
        self._table_numbers = table["table"].to_numpy()  # [N]
        self._archives = table["archive"].combine_chunks() if config.archive_field else None
        if config.archive_field:
            self._places = [table[f"place_{n}"].to_numpy() for n in range(NUM_PLACES)]  # each [N]

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
                return RawPair(name, (self._root / name).read_bytes(), captions)
            archive = str(self._archives[index].as_py())
            return RawPair(f"{archive}/{name}", self._member(archive, index), captions)
        except OSError as error:
            raise BadSampleError(sources.NO_IMAGE, str(error)) from None

    def _member(self, archive: str, index: int) -> bytes:
        position, packed_size, size, method = (int(column[index]) for column in self._places)
        path = self._root / archive
        header = self._reader.read(path, position, LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or not header.startswith(LOCAL_MAGIC):
            raise BadSampleError(sources.BROKEN_IMAGE, f"no zip member at {position} of {archive}")
        name_size, extra_size = LOCAL_HEADER.unpack(header)[-2:]
        start = position + LOCAL_HEADER.size + name_size + extra_size
        data = self._reader.read(path, start, packed_size)
        return data if method == zipfile.ZIP_STORED else sources.inflate(data, size=size)

    def _build(self) -> Index:
        lost = BadSamples()
        tables: list[pa.Table] = []
        part_sizes = [0] * (max(file.part for file in self._files) + 1)
        missing: list[ShardFile] = []
        archives: set[str] = set()
        for number, file in enumerate(self._files):
            if not file.path.is_file():
                missing.append(file)
                continue
            table = self._columns(self._read_table(file, lost), number, file)
            if self._config.archive_field:
                archives.update(table["archive"].unique().to_pylist())
                table = self._with_places(table, lost)
            tables.append(table)
            part_sizes[file.part] += len(table)
        expected = sources.expected_counts(self._files)
        average = sum(map(len, tables)) // len(tables) if tables else 1
        for file in missing:
            lost.add(file.name, sources.MISSING_SHARD, max(1, expected.get(file.path, average)))
        if not tables:
            names = ", ".join(file.name for file in missing[:5])
            raise DataError(
                f"None of the tables of data.source.path exists: {names}. Put them below the data "
                "root, or correct the path."
            )
        dependencies = sources.count_files(self._files)
        dependencies += [self._root / archive for archive in sorted(archives)]
        table = pa.concat_tables(tables, promote_options="permissive")
        return Index(table, part_sizes, lost, dependencies)

    def _read_table(self, file: ShardFile, lost: BadSamples) -> pa.Table:
        config = self._config
        wanted = [
            config.image_field,
            *([config.archive_field] if config.archive_field else []),
            *config.caption_fields,
        ]
        try:
            if config.kind == "parquet":
                present = pa_parquet.read_schema(file.path).names
                _check_columns(wanted, present, file)
                return pa_parquet.read_table(file.path, columns=wanted)
            separator = config.separator or ("\t" if file.path.suffix == ".tsv" else ",")
            table = _read_csv(file, separator, wanted, lost)
            _check_columns(wanted, table.column_names, file)
            return table.select(wanted)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(
                f"{file.name} cannot be read as {config.kind}: {error}. Check data.source.kind "
                "and the file."
            ) from None

    def _columns(self, table: pa.Table, number: int, file: ShardFile) -> pa.Table:
        """The table under the names and types of the index."""
        config = self._config
        columns: dict[str, Any] = {
            "image": _as_text(table[config.image_field], config.image_field, file),
            "table": pa.array(np.full(len(table), number, dtype=np.int32)),
        }
        if config.archive_field:
            columns["archive"] = _as_text(table[config.archive_field], config.archive_field, file)
        for position, name in enumerate(config.caption_fields):
            column = table[name]
            if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
                columns[f"captions_{position}"] = column.cast(pa.large_list(pa.large_string()))
            else:
                columns[f"captions_{position}"] = _as_text(column, name, file)
        return pa.table(columns)

    def _with_places(self, table: pa.Table, lost: BadSamples) -> pa.Table:
        """Add where each zip member lies; rows without one are dropped and counted."""
        archives = table["archive"].to_pylist()
        members = table["image"].to_pylist()
        rows_of: dict[str, list[int]] = {}
        for row, archive in enumerate(archives):
            rows_of.setdefault(str(archive), []).append(row)
        places: npt.NDArray[np.int64] = np.full((len(table), NUM_PLACES), MISSING, dtype=np.int64)
        for archive, rows in rows_of.items():
            directory, problem = _zip_directory(self._root / archive)
            if problem:
                lost.add(archive, problem, len(rows))
                continue
            for row in rows:
                found = directory.get(members[row])
                if found is None:
                    lost.add(archive, sources.NO_IMAGE)
                else:
                    places[row] = found
        for number in range(NUM_PLACES):
            table = table.append_column(f"place_{number}", pa.array(places[:, number]))
        return table.filter(pa.array(places[:, 0] != MISSING))


def _zip_directory(path: Path) -> tuple[dict[str, tuple[int, int, int, int]], str | None]:
    """Member -> (position, packed size, size, method) of a zip, and what is wrong with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename: (
                    info.header_offset,
                    info.compress_size,
                    info.file_size,
                    info.compress_type,
                )
                for info in archive.infolist()
                if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            }, None
    except FileNotFoundError:
        return {}, sources.MISSING_SHARD
    except (OSError, zipfile.BadZipFile):
        return {}, sources.BROKEN_SHARD


def _read_csv(file: ShardFile, separator: str, wanted: Sequence[str], lost: BadSamples) -> pa.Table:
    def skip(row: pa_csv.InvalidRow) -> str:
        lost.add(file.name, sources.BROKEN_ROW)
        return "skip"

    return pa_csv.read_csv(
        file.path,
        parse_options=pa_csv.ParseOptions(
            delimiter=separator, newlines_in_values=True, invalid_row_handler=skip
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in wanted}, strings_can_be_null=False
        ),
    )


def _check_columns(wanted: Sequence[str], present: Sequence[str], file: ShardFile) -> None:
    for name in wanted:
        if name not in present:
            raise DataError(
                f"{file.name} has no column {name!r}.{did_you_mean(name, present)} It has: "
                f"{', '.join(present)}. Name its columns in data.source.image_field, "
                "archive_field and caption_fields."
            )


def _as_text(column: pa.ChunkedArray, name: str, file: ShardFile) -> pa.ChunkedArray:
    try:
        return column.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(
            f"Column {name!r} of {file.name} holds {column.type}, and a text (or, for captions, a "
            "list of texts) is needed."
        ) from None
