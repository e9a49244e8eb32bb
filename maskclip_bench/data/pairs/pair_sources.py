"""Sources of image-text pairs: an index of all samples, from which any one is read directly.

Every kind of source (tar shards, tables, zip archives) first becomes an Arrow table with a row a
sample that says where its bytes lie. It is cached below the data root and memory-mapped, so ranks
and loader processes share one copy, and any sample can be read without reading those before it:
that is what makes the order of an epoch exact and resuming free.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import braceexpand
import pyarrow as pa

from maskclip_bench.errors import ConfigError, DataError, StorageError
from maskclip_bench.storage import atomic_folder, exclusive, fingerprint

logger = logging.getLogger(__name__)

INDEX_FOLDER = ".index"
"""Folder below the data root with the cached indices; deleting it only costs time."""

INDEX_FORMAT = 2
"""Raised when the columns of an index change their meaning."""

MAX_OPEN_FILES = 128
"""Open files each process keeps."""

BROKEN_IMAGE = "broken image"
EMPTY_CAPTION = "empty caption"
NO_IMAGE = "no image"
NO_CAPTION = "no caption"
MISSING_SHARD = "missing shard"
TRUNCATED_SHARD = "truncated shard"
BROKEN_SHARD = "broken shard"
BROKEN_ROW = "broken row"
BROKEN_CAPTION = "broken caption"

GLOB_CHARACTERS = frozenset("*?[")


class BadSampleError(Exception):
    """A sample that cannot be used; the loader counts it and goes on.

    Args:
        reason: One of the reasons above, for counting.
        detail: What exactly is wrong.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass
class BadSamples:
    """Counts of unusable samples: shard -> reason -> number."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, shard: str, reason: str, number: int = 1) -> None:
        """Count `number` samples of `shard` as unusable for `reason`."""
        self.counts.setdefault(shard, Counter())[reason] += number

    def total(self) -> int:
        """Number of all unusable samples."""
        return sum(sum(counter.values()) for counter in self.counts.values())

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Plain data: shard -> reason -> number."""
        return {shard: dict(counter) for shard, counter in sorted(self.counts.items())}

    def describe(self, *, num_shards: int = 10) -> str:
        """The worst shards with their reasons, for messages."""
        worst = sorted(self.counts.items(), key=lambda item: -sum(item[1].values()))
        lines = [
            f"{shard}: " + ", ".join(f"{number} {reason}" for reason, number in counter.items())
            for shard, counter in worst[:num_shards]
        ]
        rest = len(worst) - num_shards
        return "; ".join(lines) + (f"; and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class RawPair:
    """One sample as it lies on the disk.

    Attributes:
        key: Name of the sample.
        image: Encoded image.
        captions: For each caption field, its captions (possibly empty texts).
    """

    key: str
    image: bytes
    captions: list[list[str]]


class Source(Protocol):
    """Samples that can be read in any order, by any process."""

    part_sizes: Sequence[int]
    """Samples in each part of the path between `::`."""

    lost: BadSamples
    """Samples found unusable while the index was made; they have no number."""

    def __len__(self) -> int: ...

    def shard(self, index: int) -> str:
        """Name of the shard, archive or table that holds a sample."""
        ...

    def files(self) -> list[tuple[str, Path]]:
        """Shards, tables and archives by name, in the order of the samples."""
        ...

    def image_files(self) -> list[Path]:
        """Images that are files of their own, in the order of the samples."""
        ...

    def read(self, index: int) -> RawPair:
        """Read a sample without decoding it.

        Raises:
            BadSampleError: It cannot be read.
        """
        ...


@dataclass(frozen=True)
class ShardFile:
    """One file of a source.

    Attributes:
        path: Where it lies.
        name: How it is called in messages: relative to the data root.
        part: Number of its part of the path between `::`.
    """

    path: Path
    name: str
    part: int


def list_files(path: str, *, data_root: Path) -> list[ShardFile]:
    """Files named by a `SourceConfig.path`: `::` between parts, braces, globs.

    Files written out (not by a glob) are listed even if they do not exist.

    Raises:
        ConfigError: Braces do not match.
        DataError: A glob matches nothing.
    """
    files: list[ShardFile] = []
    for part, pattern in enumerate(path.split("::")):
        try:
            names = list(braceexpand.braceexpand(pattern, escape=False))
        except ValueError:  # braceexpand.UnbalancedBracesError
            raise ConfigError(
                f"data.source.path has braces that do not match: {pattern!r}. Write ranges as "
                "{00000..00331} and lists as {a,b}."
            ) from None
        for name in names:
            if not GLOB_CHARACTERS.intersection(name):
                files.append(ShardFile(data_root / name, name, part))
                continue
            anchor = Path(name).anchor
            base = Path(anchor) if anchor else data_root
            found = sorted(base.glob(name.removeprefix(anchor)))
            if not found:
                raise DataError(
                    f"No file matches {name!r} in {base}. Put the shards there, or give the "
                    "right pattern in data.source.path."
                )
            files += [ShardFile(file, _shown(file, data_root), part) for file in found]
    return files


def expected_counts(files: Sequence[ShardFile]) -> dict[Path, int]:
    """Samples each shard should have, where a `shards.json` or `sizes.json` beside it says so.

    `shards.json` holds `{"shards": {name: count}}`; `sizes.json` (open_clip's) `{name: count}`.
    """
    counts: dict[Path, int] = {}
    for path in count_files(files):
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        listed = loaded.get("shards", loaded) if isinstance(loaded, dict) else {}
        for shard, count in listed.items():
            if isinstance(count, int):
                counts[path.parent / shard] = count
    return counts


def count_files(files: Sequence[ShardFile]) -> list[Path]:
    """Where `expected_counts` looks; the files need not exist."""
    folders = sorted({file.path.parent for file in files})
    return [folder / name for folder in folders for name in ("sizes.json", "shards.json")]


@dataclass
class Index:
    """What is known of all samples before the first is read.

    Attributes:
        table: A row a sample.
        part_sizes: Samples in each part of the path.
        lost: Samples that have no row because their shard is missing or broken.
        dependencies: Further files it was made from (archives, lists of counts), missing ones too.
    """

    table: pa.Table
    part_sizes: list[int]
    lost: BadSamples
    dependencies: list[Path] = field(default_factory=list)


def cached_index(
    files: Sequence[ShardFile],
    settings: Mapping[str, Any],
    build: Callable[[], Index],
    *,
    data_root: Path,
) -> Index:
    """`build()`, or what it returned when it last ran for the same files and settings.

    It is made anew when size or time of change of a file differ. Where the data root cannot be
    written, the index stays in memory.
    """
    states = [[file.name, file.part, _state(file.path)] for file in files]
    key = fingerprint({"format": INDEX_FORMAT, **settings, "files": states})
    folder = data_root / INDEX_FOLDER / key
    index = _load_index(folder)
    if index is not None:
        return index
    try:
        with exclusive(folder):
            index = _load_index(folder)  # another process may have made it meanwhile
            if index is None:
                logger.info("Indexing %d files below %s (once)", len(files), data_root)
                index = build()
                _save_index(index, folder)
            return _load_index(folder) or index
    except StorageError as error:
        logger.info("The index of the data stays in memory: %s", error)
        return index or build()


class FileReader:
    """Reads ranges of bytes; keeps the last files open.

    Reads name their position, so a forked process can share the open files of its parent.
    """

    def __init__(self) -> None:
        self._descriptors: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """`size` bytes of `path` from `offset`; fewer at its end.

        Raises:
            OSError: The file cannot be opened or read.
        """
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY)
            self._descriptors[path] = descriptor
            if len(self._descriptors) > MAX_OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
        else:
            self._descriptors.move_to_end(path)
        return os.pread(descriptor, size, offset)

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._descriptors = OrderedDict()


def inflate(data: bytes, *, size: int) -> bytes:
    """Unpack raw deflate data to at most `size` bytes.

    Raises:
        BadSampleError: The data is broken.
    """
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size)
    except zlib.error as error:
        raise BadSampleError(BROKEN_IMAGE, f"broken zip data: {error}") from None


def as_captions(value: Any) -> list[str]:
    """The captions a field holds: a text, a list of texts, or nothing.

    Raises:
        BadSampleError: It holds something else.
    """
    if value is None:
        return [""]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(entry is None or isinstance(entry, str) for entry in value):
        return [entry or "" for entry in value]
    raise BadSampleError(BROKEN_CAPTION, f"a caption is a {type(value).__name__}, not a text")


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _state(path: Path) -> list[int] | None:
    """Size and time of change of a file, None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _save_index(index: Index, folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        table = index.table.combine_chunks()
        with pa.ipc.new_file(str(temporary / "index.arrow"), table.schema) as writer:
            writer.write_table(table)
        about = {
            "part_sizes": index.part_sizes,
            "lost": index.lost.as_dict(),
            "dependencies": {str(path): _state(path) for path in index.dependencies},
        }
        (temporary / "index.json").write_text(json.dumps(about), encoding="utf-8")


def _load_index(folder: Path) -> Index | None:
    """The index in `folder`; None if there is none, or it is damaged or out of date."""
    try:
        about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        dependencies = {Path(path): state for path, state in about["dependencies"].items()}
        if any(_state(path) != state for path, state in dependencies.items()):
            return None
        table = pa.ipc.open_file(pa.memory_map(str(folder / "index.arrow"))).read_all()
        lost = BadSamples({shard: Counter(reasons) for shard, reasons in about["lost"].items()})
        return Index(table, about["part_sizes"], lost, list(dependencies))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        logger.warning("The index in %s is damaged (%s) and is made anew.", folder, error)
        return None
