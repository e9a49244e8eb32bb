"""The index of a source: an Arrow table with a row a sample, made once and kept on the disk.

It is kept below the data root, or, where that cannot be written, in the user's cache folder, and is
memory-mapped, so that ranks and loader processes share one copy. It is made again when one of the
files it was made from is another one (by size, times and inode; by content, if the file was written
just now), or when it is damaged itself.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from maskclip_bench.content_hash import RECENT_SECONDS, cache_folder, file_hash
from maskclip_bench.data.pairs.pair_files import PairFile
from maskclip_bench.data.pairs.pair_sources import BadSamples
from maskclip_bench.errors import DataError, StorageError
from maskclip_bench.regular_file import status_of
from maskclip_bench.storage import (
    atomic_folder,
    exclusive,
    fingerprint,
    remove_leftovers,
    sha256_file,
)

logger = logging.getLogger(__name__)

INDEX_FOLDER = ".index"
"""Folder below the data root with the indices; deleting it only costs time."""

CACHE_INDEX_FOLDER = "pair_indices"
"""The same in the user's cache folder, for data roots that cannot be written."""

INDEX_FORMAT = 3
"""Raised when the columns of an index change their meaning."""

State = list[Any]
"""What tells one version of a file from another: size, times, inode; or why there is none."""


@dataclass
class Index:
    """What is known of all samples before the first is read.

    Attributes:
        table: A row a sample.
        part_sizes: Samples in each part of the path.
        lost: Samples that have no row because their shard is missing or broken.
        noted: What else is irregular.
        dependencies: Further files it was made from (archives, lists of counts), missing ones too.
    """

    table: pa.Table
    part_sizes: list[int]
    lost: BadSamples
    noted: BadSamples = field(default_factory=BadSamples)
    dependencies: list[Path] = field(default_factory=list)


def cached_index(
    files: Sequence[PairFile],
    settings: Mapping[str, Any],
    build: Callable[[], Index],
    *,
    data_root: Path,
) -> Index:
    """`build()`, or what it returned when it last ran for the same files and settings."""
    names = [[file.name, file.part] for file in files]
    key = fingerprint({"format": INDEX_FORMAT, **settings, "files": names})
    states = {file.name: file_state(file.path) for file in files}
    for folder in _folders(key, data_root):
        index = _load_index(folder, states)
        if index is not None:
            return index
    index = None
    for folder in _folders(key, data_root):
        try:
            with exclusive(folder):
                if index is None:
                    index = _load_index(folder, states)  # another process may have made it
                    if index is not None:
                        return index
                    logger.info("Indexing %d files below %s (once)", len(files), data_root)
                    index = build()
                remove_leftovers(folder.parent)
                _save_index(index, folder, states)
                return _load_index(folder, states) or index
        except StorageError as error:
            logger.info("The index of the data cannot be kept there: %s", error)
    return index or build()


def file_state(path: Path) -> State:
    """Size, times and inode of a file, with its hash if it was written just now."""
    try:
        status = status_of(path)
    except DataError:
        return ["missing" if not path.exists() else "unreadable"]
    state: State = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    now = time.time()
    if max(status.st_mtime, status.st_ctime) > now - RECENT_SECONDS:
        try:
            state.append(file_hash(path))
        except DataError:  # it is still being written
            state.append(time.time_ns())
    return state


def _folders(key: str, data_root: Path) -> list[Path]:
    folders = [data_root / INDEX_FOLDER / key]
    try:
        elsewhere = fingerprint([key, str(data_root.absolute())])
        folders.append(cache_folder() / CACHE_INDEX_FOLDER / elsewhere)
    except RuntimeError:  # no home
        pass
    return folders


def _save_index(index: Index, folder: Path, states: Mapping[str, State]) -> None:
    with atomic_folder(folder) as temporary:
        table = index.table.combine_chunks()
        arrow = temporary / "index.arrow"
        with pa.ipc.new_file(str(arrow), table.schema) as writer:
            writer.write_table(table)
        about = {
            "part_sizes": index.part_sizes,
            "lost": _as_json(index.lost),
            "noted": _as_json(index.noted),
            "files": states,
            "dependencies": {str(path): file_state(path) for path in index.dependencies},
            "sha256": sha256_file(arrow),
        }
        text = json.dumps({**about, "seal": fingerprint(about)})
        (temporary / "index.json").write_text(text, encoding="utf-8")


def _load_index(folder: Path, states: Mapping[str, State]) -> Index | None:
    """The index in `folder`; None if there is none, or it is damaged or out of date."""
    try:
        about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if about.pop("seal") != fingerprint(about):
            raise ValueError("index.json is not as it was written")
        if about["files"] != dict(states):
            return None
        dependencies = {Path(path): state for path, state in about["dependencies"].items()}
        if any(file_state(path) != state for path, state in dependencies.items()):
            return None
        arrow = folder / "index.arrow"
        if sha256_file(arrow) != about["sha256"]:
            raise ValueError("index.arrow is not as it was written")
        table = pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
        lost, noted = _from_json(about["lost"]), _from_json(about["noted"])
        return Index(table, about["part_sizes"], lost, noted, list(dependencies))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        logger.warning("The index in %s is damaged (%s) and is made again.", folder, error)
        return None


def _as_json(bad: BadSamples) -> dict[str, Any]:
    return {"counts": bad.as_dict(), "examples": bad.examples}


def _from_json(value: Mapping[str, Any]) -> BadSamples:
    counts = {shard: Counter(reasons) for shard, reasons in value["counts"].items()}
    return BadSamples(counts, value["examples"])
