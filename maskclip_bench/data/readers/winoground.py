"""Winoground: pairs of images and pairs of captions with the same words in another order.

`examples.jsonl` and `images/`, as the Hugging Face repository `facebook/winoground` has them. An
example gives two samples, an image with its caption each, one after the other, of one group.
Classes are the tags Object, Relation and Both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.left_over import check_present
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.text_files import read_lines
from maskclip_bench.errors import DataError

EXAMPLES = "examples.jsonl"


class Winoground(ReaderDeclaration):
    """Examples of two images and two captions; there is only a `test` split."""

    kind: Literal["winoground"] = "winoground"

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The list of examples and the folder of images."""
        return [root, root / EXAMPLES, root / "images"]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable:
        """The tags that occur, sorted."""
        tags = tuple(sorted({str(row["collapsed_tag"]) for row in _rows(root / EXAMPLES, what)}))
        return ClassTable(tags, tags, source=str(root / EXAMPLES))

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        assert classes is not None
        rows = _rows(root / EXAMPLES, what)
        sides = [(row, side) for row in rows for side in (0, 1)]
        names = [str(row[f"image_{side}"]) for row, side in sides]
        paths = [root / "images" / (name if "." in name else f"{name}.png") for name in names]
        check_present(
            [path.name for path in paths],
            paths,
            what=what,
            where=f"of {EXAMPLES} are not in {root / 'images'}",
            remedy="Unpack images.zip again.",
        )
        tags = [str(row["collapsed_tag"]) for row, _ in sides]
        return Dataset(
            name=what,
            split=split,
            sample_ids=[f"{row['id']}/{side}" for row, side in sides],
            groups=[str(row["id"]) for row, _ in sides],
            read=FileImages(paths),
            files=[root / EXAMPLES, *paths],
            labels=np.array(classes.labels_of(tags, what=what, noun="tags"), dtype=np.int64),
            classes=classes,
            captions=[[str(row[f"caption_{side}"])] for row, side in sides],
            image_paths=paths,
        )


def _rows(path: Path, what: str) -> list[dict[str, Any]]:
    """The examples.

    Raises:
        DataError: A line is none.
    """
    rows = []
    needed = {"id", "image_0", "image_1", "caption_0", "caption_1", "collapsed_tag"}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not needed <= set(row):
            raise DataError(
                f"{what}: line {number} of {path} is no example. It should be JSON with "
                f"{', '.join(sorted(needed))}. Download it again."
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{what}: {path} has no example. Download it again.")
    return rows
