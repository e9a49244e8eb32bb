"""What a folder, shard or list holds beyond the samples of a split: counted and named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from maskclip_bench.errors import DataError

SHOWN = 3
"""Names that are kept of each reason."""

HIDDEN = "hidden by a name that begins with a dot"
NO_IMAGE = "no image by the end of the name"
NOT_DECODED = "images of a format that the installed Pillow cannot decode"
SPECIAL = "pipes, sockets or devices"
LOOP = "links to a folder that contains them"

_QUIET = frozenset({HIDDEN})
"""Reasons that are recorded without a warning."""


class LeftOver:
    """Counts and first names of what was not taken, by reason; falsy if there is nothing.

    Example:
        >>> left = LeftOver()
        >>> left.add("no image by the end of the name", "notes.txt")
        >>> left.to_json()
        {'no image by the end of the name': {'count': 1, 'first': ['notes.txt']}}
    """

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one thing."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < SHOWN:
            names.append(shown(name))

    def add_all(self, reason: str, names: Iterable[str]) -> None:
        """Count several things of one reason."""
        for name in names:
            self.add(reason, name)

    def merge(self, other: LeftOver) -> None:
        """Add what another one counted."""
        for reason, count in other._counts.items():
            self._counts[reason] = self._counts.get(reason, 0) + count
            names = [*self._names.get(reason, []), *other._names[reason]]
            self._names[reason] = names[:SHOWN]

    def __bool__(self) -> bool:
        return bool(self._counts)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Reason -> `count`, and the `first` names; for records."""
        return {
            reason: {"count": count, "first": list(self._names[reason])}
            for reason, count in self._counts.items()
        }

    def sentence(self) -> str:
        """What is worth a warning, in words; empty if nothing is."""
        return "; ".join(
            f"{count} {reason} ({', '.join(self._names[reason])}"
            f"{', ...' if count > len(self._names[reason]) else ''})"
            for reason, count in self._counts.items()
            if reason not in _QUIET
        )


def shown(name: object) -> str:
    r"""A name for messages: control characters and half characters as escapes, the rest as it is.

    Example:
        >>> shown("a\nb")
        'a\\nb'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(name)
    )


def readable(name: str) -> str:
    r"""A file name as text that UTF-8 can hold; bytes that are no UTF-8 become `\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def check_present(
    names: Sequence[str], paths: Sequence[Path], *, what: str, where: str, remedy: str
) -> None:
    """Images that a list names are files.

    Args:
        names: As the list has them, for the message.
        paths: Of the files, in the same order.
        what: Of the data set, for the message.
        where: Ends "N of M images": whose they are, and where they should be.
        remedy: What to do.

    Raises:
        DataError: Some are not.
    """
    absent = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if absent:
        raise DataError(
            f"{what}: {len(absent)} of {len(names)} images {where}, e.g. {examples(absent)}. "
            f"{remedy}"
        )


def examples(names: Iterable[object]) -> str:
    """The first few names for a message, with dots if there are more."""
    listed = list(names)
    more = ", ..." if len(listed) > SHOWN else ""
    return ", ".join(shown(name) for name in listed[:SHOWN]) + more
