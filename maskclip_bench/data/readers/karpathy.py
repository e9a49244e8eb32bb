"""Karpathy's split files: one JSON of splits and sentences, and a folder of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from maskclip_bench.data.dataset import Dataset, FileImages, fingerprint_of
from maskclip_bench.data.directory_walk import file_size
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.errors import DataError


class Karpathy(ReaderDeclaration):
    """Images with captions (Flickr30K, COCO)."""

    kind: Literal["karpathy"] = "karpathy"
    file: str
    """The JSON file below the root."""
    images: str = "images"
    """Folder of the images below the root."""

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The JSON file and the images."""
        return [root, root / self.file, root / self.images]

    def open(self, split: str, root: Path, *, what: str) -> Dataset:
        """Open a split; see the base class."""
        path = root / self.file
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["images"]
            chosen = [entry for entry in entries if entry["split"] == split]
            names = [
                "/".join(part for part in (entry.get("filepath", ""), entry["filename"]) if part)
                for entry in chosen
            ]
            captions = [
                [" ".join(sentence["raw"].split()) for sentence in entry["sentences"]]
                for entry in chosen
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is no Karpathy split file ({type(error).__name__}: {error}). It should "
                'hold {"images": [{"filename", "split", "sentences": [{"raw"}]}]}. '
                "Download it again."
            ) from None
        if not chosen:
            known = sorted({str(entry["split"]) for entry in entries})
            raise DataError(
                f"{path} has no image of the split {split!r}; it has {', '.join(known)}."
            )
        bare = [name for name, texts in zip(names, captions, strict=True) if not any(texts)]
        if bare:
            raise DataError(f"{path}: {len(bare)} images have no caption, e.g. {bare[0]}.")
        return Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=list(names),
            fingerprint=fingerprint_of(
                (
                    (name, file_size(root / self.images / name), texts)
                    for name, texts in zip(names, captions, strict=True)
                ),
                [],
            ),
            read=FileImages([root / self.images / name for name in names]),
            captions=captions,
        )
