"""CLIP-benchmark's shards: `{split}/*.tar` of `key.jpg` with `key.cls` or `key.txt`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from maskclip_bench.data.dataset import Dataset, TarImages, fingerprint_of
from maskclip_bench.data.directory_walk import IMAGE_SUFFIXES
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.errors import DataError


class WebDataset(ReaderDeclaration):
    """Shards of images with labels or captions."""

    kind: Literal["webdataset"] = "webdataset"

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The folder of the split."""
        return [root, root / split]

    def open(self, split: str, root: Path, *, what: str) -> Dataset:
        """Open a split; see the base class."""
        shards = sorted((root / split).rglob("*.tar"), key=lambda p: (len(p.name), p.as_posix()))
        ids: list[str] = []
        places: list[tuple[Path, int, int]] = []
        texts: list[dict[str, str]] = []
        for shard in shards:
            for key, place, text in _read_shard(shard):
                ids.append(f"{shard.relative_to(root / split).as_posix()}/{key}")
                places.append((shard, *place))
                texts.append(text)
        labelled = [text for text in texts if "cls" in text]
        labels = captions = None
        class_names: list[str] = []
        if texts and len(labelled) == len(texts):
            labels = np.array([int(text["cls"]) for text in texts], dtype=np.int64)
            class_names = _lines(root / "classnames.txt") or [
                str(i) for i in range(labels.max() + 1)
            ]
        elif all("txt" in text for text in texts):
            captions = [
                [line for line in text["txt"].splitlines() if line.strip()] for text in texts
            ]
        else:
            raise DataError(
                f"{what}: {len(texts) - len(labelled)} of {len(texts)} samples in {root / split} "
                "have neither a .cls (label) nor all a .txt (captions). Pack the data set again."
            )
        return Dataset(
            name=what,
            split=split,
            sample_ids=ids,
            groups=list(ids),
            fingerprint=fingerprint_of(
                ((i, place[2], text) for i, place, text in zip(ids, places, texts, strict=True)),
                class_names,
            ),
            read=TarImages(places, ids),
            labels=labels,
            class_names=class_names,
            captions=captions,
        )


def _read_shard(shard: Path) -> Iterator[tuple[str, tuple[int, int], dict[str, str]]]:
    """(key, (offset, bytes) of its image, extension -> text of its small files)."""
    samples: dict[str, tuple[list[tuple[int, int]], dict[str, str]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, _, extension = member.name.rpartition("/")[2].partition(".")
                image, text = samples.setdefault(key, ([], {}))
                if f".{extension.lower()}" in IMAGE_SUFFIXES:
                    image.append((member.offset_data, member.size))
                elif extension in ("cls", "txt"):
                    content = tar.extractfile(member)
                    text[extension] = content.read().decode() if content else ""
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{shard} is broken ({error}). Copy or download it again.") from None
    for key, (image, text) in samples.items():
        if image:
            yield key, image[0], text


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
