"""The files of a source (`::` between parts, braces, globs), and how many samples they hold."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import braceexpand

from maskclip_bench.data.text_files import read_json
from maskclip_bench.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

GLOB_CHARACTERS = frozenset("*?[")

MAX_FILES = 1_000_000
"""Files that one pattern may name."""

COUNT_FILES = ("sizes.json", "shards.json")

_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")


@dataclass(frozen=True)
class PairFile:
    """One file of a source.

    Attributes:
        path: Where it is.
        name: How it is called in messages: relative to the data root.
        part: Number of its part of the path between `::`.
    """

    path: Path
    name: str
    part: int


def list_files(path: str, *, data_root: Path) -> list[PairFile]:
    """Files named by a `SourceConfig.path`: `::` between parts, braces, globs.

    Files written out (not by a glob) are listed even if they do not exist.

    Raises:
        ConfigError: Braces do not match, name too many files, or a glob is malformed.
        DataError: A glob matches nothing.
    """
    files: list[PairFile] = []
    for part, pattern in enumerate(path.split("::")):
        for name in _expand(pattern):
            if not GLOB_CHARACTERS.intersection(name):
                files.append(PairFile(data_root / name, name, part))
            else:
                found = _glob(name, data_root)
                files += [PairFile(file, _shown(file, data_root), part) for file in found]
    return files


def _expand(pattern: str) -> list[str]:
    for match in _RANGE.finditer(pattern):
        if max(len(match[1]), len(match[2])) > 18 or abs(int(match[2]) - int(match[1])) > MAX_FILES:
            raise _too_many(pattern)
    try:
        expanded = braceexpand.braceexpand(pattern, escape=False)
        names = list(itertools.islice(expanded, MAX_FILES + 1))
    except ValueError:  # braceexpand.UnbalancedBracesError
        raise ConfigError(
            f"data.source.path has braces that do not match: {pattern!r}. Write ranges as "
            "{00000..00331} and lists as {a,b}."
        ) from None
    if len(names) > MAX_FILES:
        raise _too_many(pattern)
    return names


def _too_many(pattern: str) -> ConfigError:
    return ConfigError(
        f"data.source.path names more than {MAX_FILES:,} files: {pattern[:200]!r}. Correct the "
        "range in its braces."
    )


def _glob(name: str, data_root: Path) -> list[Path]:
    literal = data_root / name
    if literal.is_file():  # a name with brackets
        return [literal]
    anchor = Path(name).anchor
    base = Path(anchor) if anchor else data_root
    try:
        found = sorted(base.glob(name.removeprefix(anchor)))
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"data.source.path has no valid pattern {name!r}: {error}.") from None
    if not found:
        raise DataError(
            f"No file matches {name!r} in {base}. Put the shards there, or give the right pattern "
            "in data.source.path."
        )
    return found


def expected_counts(files: Sequence[PairFile]) -> dict[Path, int]:
    """Samples each shard should have, where a `shards.json` or `sizes.json` beside it says so.

    `shards.json` holds `{"shards": {name: count}}`; `sizes.json` (open_clip's) `{name: count}`.
    """
    counts: dict[Path, int] = {}
    for path in count_files(files):
        if not path.exists():
            continue
        try:
            loaded = read_json(path)
        except DataError as error:
            logger.warning("The counts of samples in %s are not used: %s", path, error)
            continue
        listed = loaded.get("shards", loaded) if isinstance(loaded, dict) else {}
        for shard, count in listed.items() if isinstance(listed, dict) else ():
            if type(count) is int and count >= 0:
                counts[path.parent / shard] = count
    return counts


def count_files(files: Sequence[PairFile]) -> list[Path]:
    """Where `expected_counts` looks; the files need not exist."""
    folders = sorted({file.path.parent for file in files})
    return [folder / name for folder in folders for name in COUNT_FILES]


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
