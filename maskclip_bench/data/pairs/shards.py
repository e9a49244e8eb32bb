"""Tar shards in the webdataset convention: files of one sample share a name.

`000017.jpg`, `000017.json`, `000017.txt` are the sample `000017` (see `data/tar_scan.py`). The
headers of a shard are scanned once; samples are then read by their offset.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from maskclip_bench.data import tar_scan
from maskclip_bench.data.images import is_image_name
from maskclip_bench.data.pair_config import SourceConfig
from maskclip_bench.data.pairs import pair_sources as sources
from maskclip_bench.data.pairs.byte_ranges import FileReader
from maskclip_bench.data.pairs.pair_files import (
    PairFile,
    count_files,
    expected_counts,
    list_files,
)
from maskclip_bench.data.pairs.pair_index import Index, cached_index
from maskclip_bench.data.pairs.pair_sources import BadSampleError, BadSamples, RawPair
from maskclip_bench.data.tar_scan import TarListing, TarSamples, group_samples, scan_tar
from maskclip_bench.errors import DataError
from maskclip_bench.runtime import default_num_threads

TEXT_FIELDS = ("txt",)
"""`caption_fields` that mean the `.txt` member instead of keys of the `.json` one."""

RANGES = ("image_offset", "image_size", "text_offset", "text_size")
"""Columns of the index, in bytes from the start of the shard."""

READ_TOGETHER = 4096
"""Largest gap in bytes between an image and the text behind it that is read along."""

SHARDS_FOR_PROCESSES = 64
"""From this many shards on, they are indexed by several processes."""

MAX_INDEX_PROCESSES = 16

PROBLEMS = {
    tar_scan.TRUNCATED: sources.TRUNCATED_SHARD,
    tar_scan.DAMAGED: sources.BROKEN_SHARD,
    tar_scan.CONTINUED: sources.CONTINUED_SHARD,
}

LOST = {
    tar_scan.NO_IMAGE: sources.NO_IMAGE,
    tar_scan.NO_TEXT: sources.NO_CAPTION,
    tar_scan.TWO_IMAGES: sources.TWO_IMAGES,
    tar_scan.REPEATED_FILE: sources.REPEATED_NAME,
    tar_scan.LINK: sources.LINK,
}
"""Irregularities of a shard that take a sample away; the others are noted."""


@dataclass
class ShardIndex:
    """The samples of one shard.

    Attributes:
        table: A row a sample: its key, and where its image and its text are.
        problem: Why the shard ends too early, or None.
        detail: The problem in words.
        irregular: Reason -> names of what is irregular.
    """

    table: pa.Table
    problem: str | None
    detail: str = ""
    irregular: dict[str, list[str]] = field(default_factory=dict)


def index_shard(path: Path, *, text_suffix: str) -> ShardIndex:
    """Find the samples of a tar that have an image and a file ending in `text_suffix`.

    Raises:
        CompressedTarError: The tar is compressed.
    """
    problem: str | None = None
    listing = TarListing()
    try:
        listing = scan_tar(path)
        problem, detail = PROBLEMS.get(listing.problem or ""), listing.detail
    except tar_scan.CompressedTarError:
        raise
    except DataError as error:
        problem = sources.BROKEN_SHARD if path.exists() else sources.MISSING_SHARD
        detail = str(error) if path.exists() else ""
    found = group_samples(listing, is_image=is_image_name, text_suffixes=(text_suffix,))
    return ShardIndex(_table(found, text_suffix), problem, detail, found.irregular)


def _table(found: TarSamples, text_suffix: str) -> pa.Table:
    keys = [sample.key for sample in found.samples]
    ranges = [(*sample.image[1:], *sample.texts[text_suffix][1:]) for sample in found.samples]
    columns = np.array(ranges, dtype=np.int64).reshape(-1, len(RANGES)).T  # [4, N]
    return pa.table(
        {"key": pa.array(keys, pa.large_string()), **dict(zip(RANGES, columns, strict=True))}
    )


class TarSource:
    """Samples of tar shards (see `PairSource`)."""

    def __init__(self, config: SourceConfig, *, data_root: Path) -> None:
        self._files = list_files(config.path, data_root=data_root)
        self._fields = config.caption_fields
        self._reader = FileReader()
        settings = {"kind": "tar", "text": self._fields == TEXT_FIELDS}
        index = cached_index(self._files, settings, self._build, data_root=data_root)
        self.part_sizes: Sequence[int] = index.part_sizes
        self.lost = index.lost
        self.noted = index.noted
        self._keys = index.table["key"].combine_chunks()
        self._shard_numbers = index.table["shard"].to_numpy()  # [N]
        self._ranges = [index.table[name].to_numpy() for name in RANGES]  # each [N]

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
            BadSampleError: The shard is gone or cut off, or its caption file is no JSON of the
                right kind.
        """
        path = self._files[self._shard_numbers[index]].path
        image_at, image_size, text_at, text_size = (column.item(index) for column in self._ranges)
        try:
            if 0 <= text_at - (image_at + image_size) <= READ_TOGETHER:  # one read is cheaper
                data = self._reader.read(path, image_at, text_at + text_size - image_at)
                image, text = data[:image_size], data[text_at - image_at :]
            else:
                image = self._reader.read(path, image_at, image_size)
                text = self._reader.read(path, text_at, text_size)
        except (OSError, DataError) as error:
            raise BadSampleError(sources.MISSING_SHARD, str(error)) from None
        if len(image) < image_size or len(text) < text_size:
            raise BadSampleError(sources.TRUNCATED_SHARD, "it was cut off since it was indexed")
        return RawPair(self._keys[index].as_py(), image, self._captions(text))

    def _captions(self, text: bytes) -> list[list[str]]:
        try:
            if self._fields == TEXT_FIELDS:
                return [sources.as_captions(text.decode("utf-8-sig").strip())]
            loaded = json.loads(text)
            return [sources.as_captions(loaded[name]) for name in self._fields]
        except KeyError as error:
            raise BadSampleError(
                sources.NO_CAPTION, f"no key {error} in its JSON; there are {sorted(loaded)}"
            ) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise BadSampleError(sources.BROKEN_CAPTION, str(error)) from None

    def _build(self) -> Index:
        lost, noted = BadSamples(), BadSamples()
        part_sizes = [0] * (max(file.part for file in self._files) + 1)
        broken: list[tuple[PairFile, ShardIndex]] = []
        tables: list[pa.Table] = []
        for number, (file, shard) in enumerate(zip(self._files, self._index_all(), strict=True)):
            found = len(shard.table)
            numbers = pa.array(np.full(found, number, dtype=np.int32))
            tables.append(shard.table.append_column("shard", numbers))
            part_sizes[file.part] += found
            _count(file.name, shard, lost, noted)
            if shard.problem:
                broken.append((file, shard))
        self._estimate_losses(broken, sum(part_sizes), lost)
        table = pa.concat_tables(tables)
        return Index(table, part_sizes, lost, noted, count_files(self._files))

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
        self, broken: list[tuple[PairFile, ShardIndex]], num_found: int, lost: BadSamples
    ) -> None:
        """Count the samples that missing and broken shards should have had.

        The number is that of `shards.json`/`sizes.json`, else that of an average intact shard.
        """
        expected = expected_counts(self._files)
        num_intact = len(self._files) - len(broken)
        in_broken = sum(len(shard.table) for _, shard in broken)
        average = (num_found - in_broken) // num_intact if num_intact else 1
        for file, shard in broken:
            assert shard.problem is not None
            number = max(1, expected.get(file.path, average) - len(shard.table))
            lost.add(file.name, shard.problem, number, example=shard.detail)


def _count(name: str, shard: ShardIndex, lost: BadSamples, noted: BadSamples) -> None:
    """Count what is irregular in a shard; samples cut off at its end are estimated elsewhere."""
    for reason, names in shard.irregular.items():
        if reason == tar_scan.CUT_OFF:
            continue
        counts = lost if reason in LOST else noted
        counts.add(name, LOST.get(reason, reason), len(names))
        for example in names[: sources.NUM_EXAMPLES]:
            counts.add(name, LOST.get(reason, reason), 0, example=example)
