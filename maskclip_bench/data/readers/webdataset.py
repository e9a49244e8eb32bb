"""CLIP-benchmark's shards: `{split}/*.tar` of `key.jpg` with `key.cls` or `key.txt`.

`data/tar_scan.py` says which files make a sample. A split is taken whole or not at all: a shard
that is cut off, missing or empty, a file that does not fit, or a sample without what the others
have is an error that names it, since a number on a part of a split is no number. A text without an
image (or with one that cannot be decoded here) is no sample; it is counted and named.
"""

from __future__ import annotations

import filecmp
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from maskclip_bench.data.class_table import ClassTable, parse_index, table_of_indices
from maskclip_bench.data.dataset import Dataset, TarImages
from maskclip_bench.data.directory_walk import FoundFile, walk_files
from maskclip_bench.data.images import is_image_name
from maskclip_bench.data.left_over import LeftOver, examples
from maskclip_bench.data.pairs.pair_files import COUNT_FILES, PairFile, expected_counts
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.tar_scan import (
    HARMLESS,
    NO_IMAGE,
    Member,
    TarSample,
    group_samples,
    scan_tar,
)
from maskclip_bench.data.text_files import decode_text, read_lines
from maskclip_bench.errors import DataError
from maskclip_bench.regular_file import open_regular

CLASS_NAMES = "classnames.txt"
NUM_SHARDS = "nshards.txt"
"""CLIP-benchmark's file beside the shards that says how many there are."""

NO_SHARD = "no .tar file"
FIELD = "images that are fields of a sample"

COUNTED = HARMLESS | {NO_IMAGE}
"""What is counted, warned of and recorded; all other irregularities are errors."""

MAX_TEXT_BYTES = 1 << 20
"""Of a `.cls` or `.txt` file in a shard."""


class Sample(NamedTuple):
    """One sample of a shard.

    Attributes:
        name: Shard and key.
        image: File, offset and bytes.
        label: What `.cls` says, None without one.
        captions: The lines of `.txt`, None without one.
    """

    name: str
    image: tuple[Path, int, int]
    label: int | None
    captions: list[str] | None


class WebDataset(ReaderDeclaration):
    """Shards of images with labels or captions; `classnames.txt` names the labels, one a line."""

    kind: Literal["webdataset"] = "webdataset"

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The folder of the split."""
        return [root, root / split]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable | None:
        """From `classnames.txt`, or from the labels of all splits."""
        path = root / CLASS_NAMES
        if path.exists():
            names = _class_names(path)
            return ClassTable(tuple(map(str, range(len(names)))), names, source=str(path))
        labels = [
            sample.label
            for split in splits
            for sample in read_samples(root / split, what, LeftOver())
            if sample.label is not None
        ]
        return table_of_indices(labels, source=f"{what}: .cls files") if labels else None

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        left_over = LeftOver()
        samples = read_samples(root / split, what, left_over)
        where = f"{what}: {root / split}"
        unlabelled = [sample.name for sample in samples if sample.label is None]
        uncaptioned = [sample.name for sample in samples if sample.captions is None]
        for bare, suffix in ((unlabelled, ".cls (label)"), (uncaptioned, ".txt (captions)")):
            if 0 < len(bare) < len(samples):
                raise DataError(
                    f"{where}: {len(bare)} of {len(samples)} samples have no {suffix}, e.g. "
                    f"{examples(bare)}. Pack the data set again, all samples alike."
                )
        empty = [sample.name for sample in samples if sample.captions == []]
        if empty and unlabelled:
            raise DataError(
                f"{where}: {len(empty)} samples have an empty .txt, e.g. {examples(empty)}. Give "
                "each image a caption, or leave it out of the shard."
            )
        captions = [sample.captions for sample in samples if sample.captions]
        labels = [sample.label for sample in samples if sample.label is not None]
        return Dataset(
            name=what,
            split=split,
            sample_ids=[sample.name for sample in samples],
            groups=[sample.name for sample in samples],
            read=TarImages([s.image for s in samples], [s.name for s in samples]),
            files=list(dict.fromkeys(sample.image[0] for sample in samples)),
            labels=np.array(labels, dtype=np.int64) if labels else None,
            classes=classes if labels else None,
            captions=captions if len(captions) == len(samples) else None,
            left_over=left_over,
        )


def read_samples(folder: Path, what: str, left_over: LeftOver) -> list[Sample]:
    """All samples of the shards below a folder, in the order of the shards' names.

    Args:
        folder: Of the split.
        what: Name of the data set, for messages.
        left_over: Is told what the folder and the shards hold beyond the samples.

    Raises:
        DataError: A shard is missing, cut off, damaged or empty, or a file in it is irregular.
    """
    walk = walk_files(
        folder,
        wanted=lambda name: _is_shard(name) or name in (NUM_SHARDS, *COUNT_FILES),
        other=lambda name: NO_SHARD,
    )
    left_over.merge(walk.left_over)
    shards = [file for file in walk.files if _is_shard(file.name)]
    shards.sort(key=lambda file: (len(file.path.name), file.name))
    _check_shards(folder, shards, what)
    files = [PairFile(shard.path, shard.name, 0) for shard in shards]
    expected = expected_counts(files)
    samples: list[Sample] = []
    seen: dict[Any, list[FoundFile]] = {}
    for shard in shards:
        found = _read_shard(shard, what, left_over)
        _refuse_copy(shard, seen.setdefault(_outline(found), []), what)
        if expected.get(shard.path, len(found)) != len(found):
            raise DataError(
                f"{what}: {shard.path} holds {len(found)} samples, and the file of counts beside "
                f"it says {expected[shard.path]}. Copy or download the shard again."
            )
        samples += found
    return samples


def _outline(samples: Sequence[Sample]) -> Any:
    """What two copies of a shard have in common, without their names."""
    return tuple(
        (sample.name.rpartition("/")[2], sample.image[1:], sample.label) for sample in samples
    )


def _refuse_copy(shard: FoundFile, alike: list[FoundFile], what: str) -> None:
    """Refuse a shard with the bytes of another: its samples would count twice.

    Args:
        shard: The shard.
        alike: Shards before it of the same outline; it is added to them.
        what: Name of the data set, for messages.

    Raises:
        DataError: It is a copy.
    """
    for other in alike:
        if filecmp.cmp(other.path, shard.path, shallow=False):
            raise DataError(
                f"{what}: {shard.path} is a copy of {other.name}, so its samples would count "
                "twice. Remove one of the two."
            )
    alike.append(shard)


def _is_shard(name: str) -> bool:
    return name.lower().endswith(".tar")


def _check_shards(folder: Path, shards: Sequence[FoundFile], what: str) -> None:
    """Refuse a split of which a shard is missing, as far as names and `nshards.txt` tell."""
    remedy = "Download the missing shards; a number on a part of a split is no number."
    path = folder / NUM_SHARDS
    if path.exists():
        expected = parse_index("".join(read_lines(path)), where=str(path))
        if expected != len(shards):
            raise DataError(
                f"{what}: {folder} holds {len(shards)} shards, and {NUM_SHARDS} says {expected}. "
                f"{remedy}"
            )
    for before, after in _gaps(shard.name for shard in shards):
        raise DataError(f"{what}: no shard between {before} and {after} in {folder}. {remedy}")


def _gaps(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Neighbours in numbering (the last number of a name) whose numbers do not follow."""
    numbered: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        match = re.fullmatch(r"(.*?)([0-9]{1,18})(\D*)", name, re.DOTALL)
        if match:
            numbered.setdefault((match[1], match[3]), {})[int(match[2])] = name
    for found in numbered.values():
        numbers = sorted(found)
        for before, after in itertools.pairwise(numbers):
            if after != before + 1:
                yield found[before], found[after]


def _read_shard(shard: FoundFile, what: str, left_over: LeftOver) -> list[Sample]:
    listing = scan_tar(shard.path)
    if listing.problem:
        raise DataError(
            f"{what}: {shard.path} is no whole shard ({listing.problem}: {listing.detail}). Copy "
            "or download it again."
        )
    found = group_samples(listing, is_image=is_image_name, text_suffixes=("cls", "txt"))
    for reason, names in found.irregular.items():
        if reason not in COUNTED:
            raise DataError(
                f"{what}: {shard.path} is irregular: {len(names)} times {reason}, e.g. "
                f"{examples(names)}. Each sample is one image with a .cls or .txt of the same "
                "name; correct the shard, and pack it again."
            )
        left_over.add_all(reason, (f"{shard.name}/{name}" for name in names))
    if not found.samples:
        raise DataError(f"{what}: {shard.path} holds no sample. Download it again, or remove it.")
    with open_regular(shard.path) as file:
        samples: list[Sample] = []
        for sample in found.samples:
            texts = {}
            for suffix, member in sample.texts.items():
                file.seek(member.offset)
                texts[suffix] = _text(file.read(min(member.size, MAX_TEXT_BYTES)), member, shard)
            samples.append(_sample(sample, texts, shard))
            beside = [f"{shard.name}/{sample.key}.{s}" for s in sample.fields if is_image_name(s)]
            left_over.add_all(FIELD, beside)
    return samples


def _sample(sample: TarSample, texts: dict[str, str], shard: FoundFile) -> Sample:
    label, captions = texts.get("cls"), texts.get("txt")
    where = f"{shard.path}, {sample.key}.cls"
    return Sample(
        f"{shard.name}/{sample.key}",
        (shard.path, sample.image.offset, sample.image.size),
        None if label is None else parse_index(label, where=where),
        None if captions is None else [c.strip() for c in captions.split("\n") if c.strip()],
    )


def _text(content: bytes, member: Member, shard: FoundFile) -> str:
    what = f"{member.name} in {shard.path}"
    if member.size > MAX_TEXT_BYTES:
        raise DataError(
            f"{what} has {member.size:,} bytes, so it is no label and no caption. Correct the "
            "shard, and pack it again."
        )
    if len(content) < member.size:
        raise DataError(f"{what} is cut off. Copy or download the shard again.")
    return decode_text(content, what=what)


def _class_names(path: Path) -> tuple[str, ...]:
    """One class a line; an empty line between others would move all classes after it."""
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(
            f"Line {names.index('') + 1} of {path} is empty, so it is not clear which class the "
            "next line names. Write one name a line."
        )
    return tuple(names)
