"""Karpathy's split files: one JSON of splits and sentences, and a folder of images."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path
from typing import Any, Literal

from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.directory_walk import walk_images
from maskclip_bench.data.left_over import check_present, examples
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.text_files import read_text
from maskclip_bench.errors import DataError

NOT_LISTED = "images that the JSON file does not name"
EMPTY = "empty captions"


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

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        path, folder = root / self.file, root / self.images
        try:
            entries = json.loads(read_text(path))["images"]
            chosen = [entry for entry in entries if entry["split"] == split]
            names = [_name(entry) for entry in chosen]
            captions = [
                [" ".join(sentence["raw"].split()) for sentence in entry["sentences"]]
                for entry in chosen
            ]
            listed = {_name(entry) for entry in entries}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path} is no Karpathy split file ({type(error).__name__}: {error}). It should "
                'hold {"images": [{"filename", "split", "sentences": [{"raw"}]}]}. '
                "Download it again."
            ) from None
        if not chosen:
            known = sorted({str(entry["split"]) for entry in entries})
            raise DataError(
                f"{path} has no image of the split {split!r}; it has {', '.join(known)}. Correct "
                "`splits`."
            )
        bare = [name for name, texts in zip(names, captions, strict=True) if not any(texts)]
        if bare:
            raise DataError(
                f"{path}: {len(bare)} images have no caption, e.g. {examples(bare)}. Remove them "
                "from the file, or give them captions."
            )
        paths = [folder / name for name in names]
        where = f"of {self.file} are not in {folder}"
        check_present(names, paths, what=what, where=where, remedy="Unpack the images again.")
        dataset = Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=list(names),
            read=FileImages(paths),
            files=paths,
            captions=[[text for text in texts if text] for texts in captions],
            image_paths=paths,
        )
        for name, texts in zip(names, captions, strict=True):
            dataset.left_over.add_all(EMPTY, [name] * texts.count(""))
        if self.images not in ("", "."):  # else other data sets may lie beside the images
            walk = walk_images(folder)
            others = (file.name for file in walk.files if file.name not in listed)
            dataset.left_over.add_all(NOT_LISTED, others)
        return dataset


def _name(entry: dict[str, Any]) -> str:
    """Path of an image below the folder of images."""
    parts = (entry.get("filepath", ""), entry["filename"])
    return posixpath.normpath("/".join(part for part in parts if part))
