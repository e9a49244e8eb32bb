"""Tar shards in the webdataset convention: files of one sample stand together and share a name.

`000017.jpg`, `000017.json`, `000017.txt` are the sample `000017` (webdataset's own rule for keys).
The headers of a shard are scanned once; samples are then read by position.
"""

from __future__ import annotations

import json
import mmap
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from webdataset.tariterators import base_plus_ext

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
from maskclip_bench.errors import DataError
from maskclip_bench.runtime import default_num_threads

BLOCK = 512
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
TEXT_FIELDS = ("txt",)
"""`caption_fields` that mean the `.txt` member instead of keys of the `.json` one."""

PLACES = ("image_offset", "image_size", "text_offset", "text_size")
"""Columns of the index, in bytes from the start of the shard."""

READ_TOGETHER = 4096
"""Largest gap in bytes between an image and the text behind it that is read along."""

SHARDS_FOR_PROCESSES = 64
"""From so many shards on, they are indexed by several processes."""

MAX_INDEX_PROCESSES = 16

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


class Member(NamedTuple):
    """A file inside a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


@dataclass
class TarScan:
    """What a tar holds.

    Attributes:
        members: Regular files that are there completely, in order.
        problem: Why the rest could not be read, or None.
    """

    members: list[Member]
    problem: str | None


def scan_tar(path: Path) -> TarScan:
    """List the files of a tar by its headers (ustar, GNU long names, pax).

    Raises:
        DataError: The tar is compressed.
        OSError: It cannot be read.
    """
    if path.stat().st_size == 0:
        return TarScan([], sources.TRUNCATED_SHARD)
    members: list[Member] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:2] in COMPRESSED and data[257:262] != b"ustar":
            raise DataError(
                f"{path} is compressed ({COMPRESSED[data[:2]]}). Shards are read at random "
                "positions: unpack it to a plain .tar (images are compressed already)."
            )
        try:
            problem = _collect_members(data, members)
        except ValueError:  # a number or a pax record that is none
            problem = sources.BROKEN_SHARD
    return TarScan(members, problem)


def _collect_members(data: mmap.mmap, members: list[Member]) -> str | None:
    """Append the files of a tar to `members`; returns why it ends too early, or None."""
    position = 0
    long_name: str | None = None
    long_size: int | None = None
    while True:
        header = data[position : position + BLOCK]
        if len(header) < BLOCK:
            return sources.TRUNCATED_SHARD
        if not header.strip(b"\0"):
            return None
        if not _checksum_fits(header):
            return sources.BROKEN_SHARD
        size = _number(header[124:136]) if long_size is None else long_size
        start = position + BLOCK
        if start + size > len(data):
            return sources.TRUNCATED_SHARD
        kind = header[156:157]
        if kind == b"L":
            long_name = _text(data[start : start + size])
        elif kind == b"x":
            records = _pax_records(data[start : start + size])
            long_name = records.get("path", long_name)
            long_size = int(records["size"]) if "size" in records else None
        else:
            if kind in (b"0", b"\0", b"7"):
                members.append(Member(long_name or _name(header), start, size))
            long_name = long_size = None
        position = start + -(-size // BLOCK) * BLOCK


def _checksum_fits(header: bytes) -> bool:
    """The sum of all bytes, with the checksum's own eight counted as spaces."""
    return sum(header) - sum(header[148:156]) + 8 * 32 == _number(header[148:156])


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: base 256 for files of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax_records(data: bytes) -> dict[str, str]:
    """Records `length key=value` with a newline, lengths counting the whole record."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        length = int(data.split(b" ", 1)[0])
        key, _, value = data[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        records[key.decode("utf-8")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


@dataclass
class ShardIndex:
    """The samples of one shard.

    Attributes:
        table: A row a sample: its key, and where its image and its text lie.
        problem: Why the shard ends too early, or None.
        incomplete: Samples that lack an image or a text, by reason.
    """

    table: pa.Table
    problem: str | None
    incomplete: Counter[str]


def index_shard(path: Path, *, text_suffix: str) -> ShardIndex:
    """Find the samples of a tar that have an image and a file ending in `text_suffix`.

    Raises:
        DataError: The tar is compressed.
    """
    try:
        scan = scan_tar(path)
    except OSError:
        scan = TarScan([], sources.MISSING_SHARD)
    keys: list[str] = []
    places: list[tuple[int, int, int, int]] = []
    incomplete: Counter[str] = Counter()
    groups = list(_samples(scan.members))
    for position, (key, members) in enumerate(groups):
        image = next((m for suffix, m in members.items() if suffix in IMAGE_SUFFIXES), None)
        text = members.get(text_suffix)
        if image is not None and text is not None:
            keys.append(key.encode("utf-8", "replace").decode("utf-8"))
            places.append((image.offset, image.size, text.offset, text.size))
        elif not (scan.problem and position == len(groups) - 1):  # cut off: counted with the rest
            incomplete[sources.NO_IMAGE if image is None else sources.NO_CAPTION] += 1
    columns = np.array(places, dtype=np.int64).reshape(-1, len(PLACES)).T  # [4, N]
    table = pa.table(
        {"key": pa.array(keys, pa.large_string()), **dict(zip(PLACES, columns, strict=True))}
    )
    return ShardIndex(table, scan.problem, incomplete)


class TarSource:
    """Samples of tar shards (see `sources.Source`)."""

    def __init__(self, config: SourceConfig, *, data_root: Path) -> None:
        self._files = sources.list_files(config.path, data_root=data_root)
        self._fields = config.caption_fields
        self._reader = FileReader()
        settings = {"kind": "tar", "text": self._fields == TEXT_FIELDS}
        index = sources.cached_index(self._files, settings, self._build, data_root=data_root)
        self.part_sizes: Sequence[int] = index.part_sizes
        self.lost = index.lost
        self._keys = index.table["key"].combine_chunks()
        self._shard_numbers = index.table["shard"].to_numpy()  # [N]
        self._places = [index.table[name].to_numpy() for name in PLACES]  # each [N]

    def __len__(self) -> int:
        return len(self._shard_numbers)

    def shard(self, index: int) -> str:
        """Name of the tar of a sample."""
        return self._files[self._shard_numbers[index]].name

    def files(self) -> list[tuple[str, Path]]:
        """The tars by name, in order."""
        return [(file.name, file.path) for file in self._files]

    def image_files(self) -> list[Path]:
        """None: images are in the tars."""
        return []

    def read(self, index: int) -> RawPair:
        """Read image and captions of a sample.

        Raises:
            BadSampleError: The shard is gone or its caption file is no JSON of the right kind.
        """
        path = self._files[self._shard_numbers[index]].path
        image_at, image_size, text_at, text_size = (column.item(index) for column in self._places)
        try:
            if 0 <= text_at - (image_at + image_size) <= READ_TOGETHER:  # one read is cheaper
                data = self._reader.read(path, image_at, text_at + text_size - image_at)
                image, text = data[:image_size], data[text_at - image_at :]
            else:
                image = self._reader.read(path, image_at, image_size)
                text = self._reader.read(path, text_at, text_size)
        except OSError as error:
            raise BadSampleError(sources.MISSING_SHARD, str(error)) from None
        return RawPair(self._keys[index].as_py(), image, self._captions(text))

    def _captions(self, text: bytes) -> list[list[str]]:
        try:
            if self._fields == TEXT_FIELDS:
                return [[text.decode("utf-8").strip()]]
            loaded = json.loads(text)
            return [sources.as_captions(loaded[name]) for name in self._fields]
        except KeyError as error:
            raise BadSampleError(
                sources.NO_CAPTION, f"no key {error} in its JSON; there are {sorted(loaded)}"
            ) from None
        except (ValueError, TypeError) as error:
            raise BadSampleError(sources.BROKEN_CAPTION, str(error)) from None

    def _build(self) -> Index:
        lost = BadSamples()
        part_sizes = [0] * (max(file.part for file in self._files) + 1)
        broken: list[tuple[ShardFile, str, int]] = []
        tables: list[pa.Table] = []
        for number, (file, shard) in enumerate(zip(self._files, self._index_all(), strict=True)):
            found = len(shard.table)
            numbers = pa.array(np.full(found, number, dtype=np.int32))
            tables.append(shard.table.append_column("shard", numbers))
            part_sizes[file.part] += found
            for reason, count in shard.incomplete.items():
                lost.add(file.name, reason, count)
            if shard.problem:
                broken.append((file, shard.problem, found))
        self._estimate_losses(broken, sum(part_sizes), lost)
        dependencies = sources.count_files(self._files)
        return Index(pa.concat_tables(tables), part_sizes, lost, dependencies)

    def _index_all(self) -> Iterator[ShardIndex]:
        """Index every shard, in order; many of them in several processes."""
        index = partial(index_shard, text_suffix="txt" if self._fields == TEXT_FIELDS else "json")
        paths = [file.path for file in self._files]
        num_processes = min(default_num_threads(), MAX_INDEX_PROCESSES)
        if len(paths) < SHARDS_FOR_PROCESSES or num_processes == 1:
            yield from map(index, paths)
            return
        # Spawned, not forked: torch's threads may already run here.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
            yield from pool.map(index, paths, chunksize=4)

    def _estimate_losses(
        self, broken: list[tuple[ShardFile, str, int]], num_found: int, lost: BadSamples
    ) -> None:
        """Count the samples that missing and broken shards should have had.

        The number is that of `shards.json`/`sizes.json`, else that of an average intact shard.
        """
        expected = sources.expected_counts(self._files)
        num_intact = len(self._files) - len(broken)
        in_broken = sum(found for _, _, found in broken)
        average = (num_found - in_broken) // num_intact if num_intact else 1
        for file, problem, found in broken:
            lost.add(file.name, problem, max(1, expected.get(file.path, average) - found))


def _samples(members: Sequence[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Group neighbouring members by webdataset's key: (key, {suffix: member})."""
    current: str | None = None
    group: dict[str, Member] = {}
    for member in members:
        key, suffix = base_plus_ext(member.name)
        if key is None:
            continue
        if key != current:
            if current is not None:
                yield current, group
            current, group = key, {}
        group[suffix.lower()] = member
    if current is not None:
        yield current, group
