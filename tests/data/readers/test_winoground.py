"""Winoground: two samples an example, tags as classes, what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError

OpenSplit = Callable[..., Dataset]


@pytest.fixture
def folder(tmp_path: Path, put_image: Callable[..., Path]) -> Path:
    root = tmp_path / "set"
    rows = []
    for index, tag in enumerate(("Relation", "Object")):
        for side in (0, 1):
            put_image(root / "images" / f"ex_{index}_img_{side}.png", value=10 * index + side)
        row = {"id": index, "collapsed_tag": tag, "tag": "x"}
        row |= {f"image_{side}": f"ex_{index}_img_{side}" for side in (0, 1)}
        row |= {f"caption_{side}": f"caption {index} {side}" for side in (0, 1)}
        rows.append(json.dumps(row))
    (root / "examples.jsonl").write_text("\n".join(rows) + "\n\n")
    return root


def test_open__two_samples_an_example(folder: Path, open_split: OpenSplit) -> None:
    dataset = open_split("test", kind="winoground")
    assert dataset.sample_ids == ["0/0", "0/1", "1/0", "1/1"]
    assert dataset.groups == ["0", "0", "1", "1"]
    assert dataset.need_captions() == [[f"caption {i} {s}"] for i in (0, 1) for s in (0, 1)]
    assert dataset.class_names == ["Object", "Relation"]
    assert dataset.need_labels().tolist() == [1, 1, 0, 0]
    assert dataset.image(3).getpixel((0, 0))[0] == 11


def test_open__what_is_broken(folder: Path, open_split: OpenSplit) -> None:
    (folder / "images" / "ex_1_img_0.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images of examples\.jsonl are not in"):
        open_split("test", kind="winoground")
    (folder / "examples.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(DataError, match=r"line 1 of .* is no example"):
        open_split("test", kind="winoground")
    (folder / "examples.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no example"):
        open_split("test", kind="winoground")
