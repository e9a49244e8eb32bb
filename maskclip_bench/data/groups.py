"""Which samples belong together, from a sidecar file or from the file's name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from pydantic import field_validator

from maskclip_bench.config import Declaration
from maskclip_bench.data.cell_values import key_of
from maskclip_bench.data.left_over import examples, shown
from maskclip_bench.data.text_files import parse_json, read_table, read_text
from maskclip_bench.errors import ConfigError, DataError

PATTERN_SECONDS = 20.0
"""How long a pattern may search all names; `(a+)+$` would search one name for years."""

_SEARCH = """
import json, re, sys
pattern, names = json.load(sys.stdin)
groups = []
for name in names:
    match = re.search(pattern, name)
    groups.append(None if match is None else match.groupdict().get("group") or match.group())
json.dump(groups, sys.stdout)
"""


class Groups(Declaration):
    """Which samples belong together: from a sidecar file, or from the file's name."""

    file: str | None = None
    """Sidecar below the root, `{split}` in it replaced: a JSON mapping path -> group, or a JSON
    list, CSV or Parquet with the columns `path` and `group`. Paths start at the split's folder."""
    field: str | None = None
    """Key of the group where the JSON maps a path to an object."""
    pattern: str | None = None
    """Regular expression searched in the path; its part named `group` is the group."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"is no regular expression ({error})") from None
        return pattern


def find_groups(rule: Groups, names: list[str], root: Path, split: str, what: str) -> list[str]:
    """The group of each sample.

    Args:
        rule: Where the groups come from; without any, each sample is its own group.
        names: Ids of the samples.
        root: Folder of the data set.
        split: The data set's own name of the split.
        what: Name of the data set, for messages.

    Raises:
        DataError: A sample has no group, or the sidecar is missing or broken.
        ConfigError: The pattern takes too long.
    """
    if rule.file is not None:
        path = root / rule.file.replace("{split}", split)
        table = _read_groups(path, rule.field)
        missing = [name for name in names if name not in table]
        if missing:
            raise DataError(
                f"{what}: {path} names no group for {len(missing)} of {len(names)} images, e.g. "
                f"{shown(missing[0])}. It belongs to other images; make or unpack the data set "
                "again."
            )
        groups = [table[name] for name in names]
    elif rule.pattern is not None:
        groups = _search(rule.pattern, names, what)
    else:
        return list(names)
    without = [name for name, group in zip(names, groups, strict=True) if not group.strip()]
    if without:
        raise DataError(
            f"{what}: {rule.file or rule.pattern!r} gives {len(without)} of {len(names)} images an "
            f"empty group, e.g. {examples(without)}; all of them would count as one. Give each a "
            "group, its own name if it belongs to no other."
        )
    return groups


def _search(pattern: str, names: list[str], what: str) -> list[str]:
    """What the pattern finds in each name, in a process of its own that can be stopped."""
    try:
        finished = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _SEARCH],
            input=json.dumps([pattern, names]),
            capture_output=True,
            text=True,
            timeout=PATTERN_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{what}: the group pattern {pattern!r} takes more than {PATTERN_SECONDS:g} s for "
            f"{len(names)} names. Write it without a repeat inside a repeat, such as (a+)+."
        ) from None
    groups: list[str | None] = json.loads(finished.stdout)
    for name, group in zip(names, groups, strict=True):
        if group is None:
            raise DataError(
                f"{what}: the group pattern {pattern!r} is not found in {shown(name)!r}."
            )
    return [group for group in groups if group is not None]


def _read_groups(path: Path, field: str | None) -> dict[str, str]:
    if not path.exists():
        raise DataError(f"No file of groups {path}. Make or unpack the data set again.")
    try:
        if path.suffix == ".parquet":
            import pandas as pd

            frame = pd.read_parquet(path, columns=["path", "group"])
            groups = map(key_of, frame["group"].tolist())
            return _unique(list(zip(frame["path"].astype(str), groups, strict=True)), path)
        if path.suffix == ".csv":
            columns = read_table(path, columns=("path", "group")).to_pydict()
            return _unique(list(zip(columns["path"], columns["group"], strict=True)), path)
        table = parse_json(read_text(path))
        if isinstance(table, dict):
            return {
                str(name): key_of(group[field] if field else group) for name, group in table.items()
            }
        return _unique([(str(row["path"]), key_of(row["group"])) for row in table], path)
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise DataError(
            f"{path} is no list of groups ({type(error).__name__}: {error}). It should map each "
            "image's path to its group."
        ) from None


def _unique(rows: list[tuple[str, str]], path: Path) -> dict[str, str]:
    """Rows as a mapping; a path may be repeated only with the same group."""
    table: dict[str, str] = {}
    for name, group in rows:
        if table.setdefault(name, group) != group:
            raise DataError(f"{path} gives {shown(name)} two groups. Keep one.")
    return table
