"""CLIP-benchmark's shards: `{split}/*.tar` of `key.jpg` with `key.cls` or `key.txt`.

Which files make a sample: see `data.tar_scan`. An archive that is cut off or damaged, an image
without a label or caption, and two files of one name are errors, since a number on a part of a
split is no number. Texts without an image are counted and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from maskclip_bench.data.class_table import ClassTable, parse_index, table_of_indices
from maskclip_bench.data.dataset import Dataset, TarImages
from maskclip_bench.data.directory_walk import walk_files
from maskclip_bench.data.images import is_image_name
from maskclip_bench.data.left_over import LeftOver, examples, shown
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.tar_scan import HARMLESS, NO_IMAGE, TarSample, group_samples, scan_tar
from maskclip_bench.data.text_files import read_lines
from maskclip_bench.errors import DataError

CLASS_NAMES = "classnames.txt"
LABEL = "cls"
CAPTIONS = "txt"
NO_SHARD = "no .tar file"
LEFT_OUT = HARMLESS | {NO_IMAGE}
"""Irregularities that are counted; all others are errors."""


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
        if path.is_file():
            names = tuple(line.strip() for line in read_lines(path) if line.strip())
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
        labels = [sample.label for sample in samples if sample.label is not None]
        captions = [sample.captions for sample in samples if sample.captions is not None]
        labelled = len(labels) == len(samples)
        if not labelled and len(captions) < len(samples):
            raise DataError(
                f"{what}: {len(samples) - len(labels)} of {len(samples)} samples in {root / split} "
                f"have no .cls (label), and {len(samples) - len(captions)} no .txt (captions), "
                f"e.g. {examples(_bare(samples))}. Pack the data set again."
            )
        empty = [sample.name for sample in samples if sample.captions == []]
        if empty and not labelled:
            raise DataError(
                f"{what}: {len(empty)} samples in {root / split} have an empty .txt, e.g. "
                f"{examples(empty)}. Give each image a caption, or leave it out of the shard."
            )
        return Dataset(
            name=what,
            split=split,
            sample_ids=[sample.name for sample in samples],
            groups=[sample.name for sample in samples],
            read=TarImages([s.image for s in samples], [s.name for s in samples]),
            files=list(dict.fromkeys(sample.image[0] for sample in samples)),
            labels=np.array(labels, dtype=np.int64) if labelled and samples else None,
            classes=classes if labelled else None,
            captions=None if labelled else captions,
            left_over=left_over,
        )


def _bare(samples: list[Sample]) -> list[str]:
    """Samples without what most of the others have."""
    labelled = sum(sample.label is not None for sample in samples)
    captioned = sum(sample.captions is not None for sample in samples)
    if labelled >= captioned:
        return [sample.name for sample in samples if sample.label is None]
    return [sample.name for sample in samples if sample.captions is None]


def read_samples(folder: Path, what: str, left_over: LeftOver) -> list[Sample]:
    """All samples of the shards below a folder, in the order of the shards' names.

    Raises:
        DataError: A shard is broken.
    """
    walk = walk_files(
        folder, wanted=lambda name: name.lower().endswith(".tar"), other=lambda name: NO_SHARD
    )
    left_over.merge(walk.left_over)
    shards = sorted(walk.files, key=lambda file: (len(file.path.name), file.name))
    return [sample for file in shards for sample in _read_shard(file.path, file.name, left_over)]


def _read_shard(path: Path, name: str, left_over: LeftOver) -> list[Sample]:
    listing = scan_tar(path)
    if listing.problem is not None:
        raise DataError(
            f"{shown(path)} is {listing.problem}: {shown(listing.detail)}. Copy or download it "
            "again."
        )
    found = group_samples(listing, is_image=is_image_name, text_suffixes=(LABEL, CAPTIONS))
    refused = {why: names for why, names in found.irregular.items() if why not in LEFT_OUT}
    if refused:
        listed = "; ".join(
            f"{len(names)} times: {why} ({examples(names)})" for why, names in refused.items()
        )
        raise DataError(f"{shown(path)} is no complete shard. {listed}. Pack the data set again.")
    for why in LEFT_OUT & found.irregular.keys():
        left_over.add_all(why, (f"{name}/{what}" for what in found.irregular[why]))
    with path.open("rb") as file:
        return [_sample(file, path, name, sample) for sample in found.samples]


def _sample(file: BinaryIO, path: Path, shard: str, sample: TarSample) -> Sample:
    texts: dict[str, str] = {}
    for suffix, member in sample.texts.items():
        file.seek(member.offset)
        try:
            texts[suffix] = file.read(member.size).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{shown(member.name)} in {shown(path)} is not UTF-8 ({error}). Pack the data set "
                "again, with texts in UTF-8."
            ) from None
    label, captions = texts.get(LABEL), texts.get(CAPTIONS)
    where = f"{shown(path)}, {shown(sample.key)}.{LABEL}"
    return Sample(
        f"{shard}/{sample.key}",
        (path, sample.image.offset, sample.image.size),
        None if label is None else parse_index(label, where=where),
        None if captions is None else [c.strip() for c in captions.split("\n") if c.strip()],
    )
