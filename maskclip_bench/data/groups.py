"""Which samples belong together, from a sidecar file or from the file's name."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from maskclip_bench.config import Declaration
from maskclip_bench.errors import DataError


class Groups(Declaration):
    """Which samples belong together: from a sidecar file, or from the file's name."""

    file: str | None = None
    """Sidecar below the root, `{split}` in it replaced: a JSON mapping path -> group, or a JSON
    list, CSV or Parquet with the columns `path` and `group`. Paths start at the split's folder."""
    field: str | None = None
    """Key of the group where the JSON maps a path to an object."""
    pattern: str | None = None
    """Regular expression searched in the path; its part named `group` is the group."""


def find_groups(rule: Groups, names: list[str], root: Path, split: str, what: str) -> list[str]:
    """The group of each sample.

    Args:
        rule: Where the groups come from.
        names: Ids of the samples.
        root: Folder of the data set.
        split: The data set's own name of the split.
        what: Name of the data set, for messages.

    Raises:
        DataError: A sample has no group, or the sidecar is missing or broken.
    """
    if rule.file is not None:
        path = root / rule.file.format(split=split)
        table = _read_groups(path, rule.field)
        missing = [name for name in names if name not in table]
        if missing:
            raise DataError(
                f"{what}: {path} names no group for {len(missing)} of {len(names)} images, e.g. "
                f"{missing[0]}. It belongs to other images; make or unpack the data set again."
            )
        return [table[name] for name in names]
    if rule.pattern is not None:
        return [_match(rule.pattern, name, what) for name in names]
    return list(names)


def _match(pattern: str, name: str, what: str) -> str:
    match = re.search(pattern, name)
    if match is None:
        raise DataError(f"{what}: the group pattern {pattern!r} is not found in {name!r}.")
    return match.group("group") if "group" in match.groupdict() else match.group()


def _read_groups(path: Path, field: str | None) -> dict[str, str]:
    try:
        if path.suffix == ".parquet":
            import pandas as pd

            frame = pd.read_parquet(path, columns=["path", "group"])
            return dict(zip(frame["path"].astype(str), frame["group"].astype(str), strict=True))
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return {row["path"]: row["group"] for row in csv.DictReader(file)}
        table = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(table, dict):
            return {
                str(name): str(group[field] if field else group) for name, group in table.items()
            }
        return {str(row["path"]): str(row["group"]) for row in table}
    except FileNotFoundError:
        raise DataError(f"No file of groups {path}. Make or unpack the data set again.") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(
            f"{path} is no list of groups ({type(error).__name__}: {error}). It should map each "
            "image's path to its group."
        ) from None
