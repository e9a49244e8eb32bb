"""What a source of image-text pairs is: samples that can be read in any order, and what is wrong.

Every kind of source (tar shards, tables, zip archives) first becomes an Arrow table with a row a
sample that says where its bytes are (`pair_index.py`). Any sample can then be read without reading
those before it; that is what makes the order of an epoch exact and resuming free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

BROKEN_IMAGE = "broken image"
EMPTY_CAPTION = "empty caption"
NO_IMAGE = "no image"
NO_CAPTION = "no caption"
TWO_IMAGES = "two images of one name"
REPEATED_NAME = "name that is there twice"
LINK = "link or special file"
MISSING_SHARD = "missing shard"
TRUNCATED_SHARD = "truncated shard"
CONTINUED_SHARD = "data after the end of the shard"
BROKEN_SHARD = "broken shard"
BROKEN_ROW = "broken row"
BROKEN_CAPTION = "broken caption"

NUM_EXAMPLES = 3
"""Names kept of each reason in each shard."""

EXAMPLE_LENGTH = 120
"""Characters shown of an example."""


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
    """Counts of unusable samples: shard -> reason -> number, with the first names."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, shard: str, reason: str, number: int = 1, *, example: str = "") -> None:
        """Count `number` samples of `shard` as unusable for `reason`; `example` names one."""
        self.counts.setdefault(shard, Counter())[reason] += number
        if example:
            names = self.examples.setdefault(shard, {}).setdefault(reason, [])
            if len(names) < NUM_EXAMPLES:
                names.append(shown(example))

    def add_all(self, other: BadSamples) -> None:
        """Add the counts and examples of `other`."""
        for shard, reasons in other.counts.items():
            for reason, number in reasons.items():
                self.add(shard, reason, number)
                for example in other.examples.get(shard, {}).get(reason, []):
                    self.add(shard, reason, 0, example=example)

    def total(self) -> int:
        """Number of all unusable samples."""
        return sum(sum(counter.values()) for counter in self.counts.values())

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Plain data: shard -> reason -> number."""
        return {shard: dict(counter) for shard, counter in sorted(self.counts.items())}

    def reasons(self, shard: str) -> str:
        """The reasons of a shard with numbers and examples, for messages."""
        told = []
        for reason, number in self.counts[shard].items():
            examples = self.examples.get(shard, {}).get(reason, [])
            told.append(f"{number} {reason}" + (f" ({', '.join(examples)})" if examples else ""))
        return ", ".join(told)

    def describe(self, *, num_shards: int = 10) -> str:
        """The worst shards with their reasons, for messages."""
        worst = sorted(self.counts, key=lambda shard: -sum(self.counts[shard].values()))
        lines = [f"{shown(shard)}: {self.reasons(shard)}" for shard in worst[:num_shards]]
        rest = len(worst) - num_shards
        return "; ".join(lines) + (f"; and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class RawPair:
    """One sample as it is on the disk.

    Attributes:
        key: Name of the sample.
        image: Encoded image.
        captions: For each caption field, its captions (possibly empty texts).
    """

    key: str
    image: bytes
    captions: list[list[str]]


class PairSource(Protocol):
    """Samples that can be read in any order, by any process."""

    part_sizes: Sequence[int]
    """Samples in each part of the path between `::`."""

    lost: BadSamples
    """Samples found unusable while the index was made; they have no number."""

    noted: BadSamples
    """What else is irregular, such as two samples of one name; takes no sample away."""

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


def as_captions(value: Any) -> list[str]:
    """The captions a field holds: a text, a list of texts, or nothing.

    Raises:
        BadSampleError: It holds something else, or a text that UTF-8 cannot hold.
    """
    if value is None:
        return [""]
    if isinstance(value, str):
        return [_caption(value)]
    if isinstance(value, list) and all(entry is None or isinstance(entry, str) for entry in value):
        return [_caption(entry or "") for entry in value]
    raise BadSampleError(BROKEN_CAPTION, f"a caption is a {type(value).__name__}, not a text")


def _caption(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON may hold half of a surrogate pair
            raise BadSampleError(BROKEN_CAPTION, "a caption holds half a character") from None
    return text


def shown(name: str) -> str:
    """A name for messages: control characters escaped, shortened."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return plain if len(plain) <= EXAMPLE_LENGTH else plain[: EXAMPLE_LENGTH - 3] + "..."
