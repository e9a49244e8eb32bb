"""Every sample of a set, read and decoded once, for `data.held`.

Samples that cannot be used are noted here and reported when they are asked for, as if they were
read then: an epoch counts them and takes substitutes for them.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from maskclip_bench.data.images import (
    Decoded,
    decode_reductions,
    factors_of_reductions,
    read_header,
)
from maskclip_bench.data.pair_config import SourceConfig
from maskclip_bench.data.pairs.pair_sources import BadSampleError, PairSource, RawPair
from maskclip_bench.data.pairs.samples import usable_captions
from maskclip_bench.data.tokenizer import CaptionTokenizer
from maskclip_bench.errors import DataError
from maskclip_bench.progress import Throttle
from maskclip_bench.runtime import default_num_threads

logger = logging.getLogger(__name__)

MAX_THREADS = 8
READ_TOGETHER = 512
"""Samples whose encoded images are in memory at a time."""

LOOKED_AT = 64
"""Samples, evenly spaced, from whose headers the size of the whole set is estimated."""

SECONDS_BETWEEN_MESSAGES = 10.0

Pixels = npt.NDArray[np.uint8]

T = TypeVar("T")


@dataclass
class HeldSamples:
    """A set in the memory of the host; lists have an entry for each sample, bad ones included.

    Attributes:
        keys: Names.
        captions: For each caption field the numbers of its usable captions, empty fields left out.
        sizes: (width, height) of the stored images.
        pixels: uint8 [H, W, 3] each: `Decoded.reductions`. Whoever moves them empties the lists.
        bad: Sample -> (reason, detail) of those that cannot be used.
        tokens: Of all captions, one after the other.
        starts: Where each caption's tokens begin, and where the last one's end.
        num_bytes: Of the pixels.
    """

    keys: list[str] = field(default_factory=list)
    captions: list[list[range]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    pixels: list[list[Pixels]] = field(default_factory=list)
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    num_bytes: int = 0

    def add(
        self, pair: RawPair, fields: list[list[str]], decoded: Decoded, tokenizer: CaptionTokenizer
    ) -> None:
        """Add a usable sample."""
        numbers: list[range] = []
        for of_field in fields:
            first = len(self.starts) - 1
            for caption in of_field:
                self.tokens += tokenizer.encode_caption(caption)
                self.starts.append(len(self.tokens))
            numbers.append(range(first, len(self.starts) - 1))
        self.keys.append(pair.key)
        self.captions.append(numbers)
        self.sizes.append((decoded.width, decoded.height))
        self.pixels.append(decoded.reductions)
        self.num_bytes += sum(pixels.nbytes for pixels in decoded.reductions)

    def add_bad(self, error: BadSampleError) -> None:
        """Add a sample that cannot be used."""
        self.bad[len(self.keys)] = (error.reason, error.detail)
        self.keys.append("")
        self.captions.append([])
        self.sizes.append((1, 1))
        self.pixels.append([])


def read_samples(
    source: PairSource,
    config: SourceConfig,
    *,
    tokenizer: CaptionTokenizer,
    image_size: int,
    limit: int,
    where: str,
) -> HeldSamples:
    """Read, tokenize and decode a whole set.

    Args:
        source: The set.
        config: Of it.
        tokenizer: Of the captions.
        image_size: Pixels that crops are resized to; decides which reduced sizes are kept.
        limit: Bytes that the images may have.
        where: The device they are for, in messages.

    Raises:
        DataError: They have more.
    """
    needed = estimated_bytes(source, image_size=image_size)
    if needed > limit:
        raise _too_large(needed, limit, len(source), config, where)
    held = HeldSamples()
    throttle = Throttle(SECONDS_BETWEEN_MESSAGES)
    throttle.due()  # nothing is said in the first seconds
    for sample in _decoded(source, config, image_size):
        if isinstance(sample, BadSampleError):
            held.add_bad(sample)
        else:
            held.add(*sample, tokenizer)
        if held.num_bytes > limit:
            needed = held.num_bytes * len(source) // len(held.keys)
            raise _too_large(needed, limit, len(source), config, where)
        if throttle.due():
            logger.info("Decoding the pairs to hold: %d of %d.", len(held.keys), len(source))
    return held


def estimated_bytes(source: PairSource, *, image_size: int) -> int:
    """About how many bytes the decoded images of a set have, from the headers of a few."""
    chosen = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int)).tolist()
    found = []
    for index in chosen:
        try:
            width, height, kind = read_header(source.read(index).image)
        except (BadSampleError, DataError):
            continue
        sizes = [1, *factors_of_reductions(width, height, kind, size=image_size)]
        found.append(sum(3 * -(-width // factor) * -(-height // factor) for factor in sizes))
    return round(len(source) * float(np.mean(found))) if found else 0


Sample = tuple[RawPair, list[list[str]], Decoded]


def _decoded(
    source: PairSource, config: SourceConfig, image_size: int
) -> Iterator[Sample | BadSampleError]:
    """All samples in order: read one by one (files are shared), decoded by several threads."""

    def read(index: int) -> tuple[RawPair, list[list[str]]]:
        pair = source.read(index)
        return pair, usable_captions(pair.captions, config)

    def decode(
        found: tuple[RawPair, list[list[str]]] | BadSampleError,
    ) -> Sample | BadSampleError:
        if isinstance(found, BadSampleError):
            return found
        return _attempt(lambda: (*found, decode_reductions(found[0].image, size=image_size)))

    indices = iter(range(len(source)))
    with ThreadPoolExecutor(min(MAX_THREADS, default_num_threads())) as pool:
        while group := list(itertools.islice(indices, READ_TOGETHER)):
            yield from pool.map(decode, [_attempt(read, index) for index in group])


def _attempt(work: Callable[..., T], *given: object) -> T | BadSampleError:
    try:
        return work(*given)
    except BadSampleError as error:
        return error


def _too_large(
    needed: int, limit: int, num_samples: int, config: SourceConfig, where: str
) -> DataError:
    return DataError(
        f"data.held: {where} needs about {_gib(needed)} for the {num_samples:,} decoded images of "
        f"{config.path}, and {_gib(limit)} may be used there, half of what is free. Set data.held "
        "to none, or use smaller images, fewer of them, or a device with more memory."
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
