"""SugarCrepe: images of COCO's val2017, each with its caption and a wrong one that reads as well.

`{subset}.json` as `RAIVNLab/sugar-crepe` has them in `data/`: number -> `filename`, `caption`,
`negative_caption`. A sample is one entry, its first caption the right one; the same image is one
group in all subsets. Classes are the subsets (`add_att`, `swap_obj`...).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.left_over import examples
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.text_files import read_json
from maskclip_bench.errors import DataError


class SugarCrepe(ReaderDeclaration):
    """All subsets that are in the folder; there is only a `test` split."""

    kind: Literal["sugar_crepe"] = "sugar_crepe"
    files: str = "data"
    """Folder of the JSON files below the root."""
    images: str = "val2017"
    """Folder of COCO's images below the root."""

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The folders of the lists and of the images."""
        return [root, root / self.files, root / self.images]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable:
        """The subsets, sorted.

        Raises:
            DataError: There is none.
        """
        names = tuple(path.stem for path in self._files(root))
        if not names:
            raise DataError(
                f"{what}: {root / self.files} holds no .json file. Copy the folder data/ of "
                "github.com/RAIVNLab/sugar-crepe there."
            )
        return ClassTable(names, names, source=str(root / self.files))

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        assert classes is not None
        entries = [
            (label, f"{path.stem}/{number}", entry)
            for label, path in enumerate(self._files(root))
            for number, entry in _entries(path, what).items()
        ]
        paths = [root / self.images / entry["filename"] for _, _, entry in entries]
        absent = sorted({path.name for path in paths if not path.is_file()})
        if absent:
            raise DataError(
                f"{what}: {len(absent)} images are not in {root / self.images}, e.g. "
                f"{examples(absent)}. Unpack COCO's val2017.zip there."
            )
        return Dataset(
            name=what,
            split=split,
            sample_ids=[name for _, name, _ in entries],
            groups=[entry["filename"] for _, _, entry in entries],
            read=FileImages(paths),
            files=list(dict.fromkeys([*self._files(root), *paths])),
            labels=np.array([label for label, _, _ in entries], dtype=np.int64),
            classes=classes,
            captions=[[e["caption"], e["negative_caption"]] for _, _, e in entries],
            image_paths=paths,
        )

    def _files(self, root: Path) -> list[Path]:
        return [file for file in sorted((root / self.files).glob("*.json")) if file.name[0] != "."]


def _entries(path: Path, what: str) -> dict[str, dict[str, Any]]:
    """Number -> entry.

    Raises:
        DataError: The file holds something else.
    """
    found = read_json(path)
    needed = ("filename", "caption", "negative_caption")
    if not isinstance(found, dict) or not all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) and entry[key].strip() for key in needed)
        for entry in found.values()
    ):
        raise DataError(
            f"{what}: {path} is no list of SugarCrepe: number -> {', '.join(needed)}, none of them "
            "empty. Copy it again from github.com/RAIVNLab/sugar-crepe."
        )
    return found
