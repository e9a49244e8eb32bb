"""Karpathy's split files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import ConfigError, DataError

OpenSplit = Callable[..., Dataset]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], None]:
    def write_it(images: Any) -> None:
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set/karpathy.json").write_text(json.dumps({"images": images}))

    return write_it


def entry(name: str, *captions: str, split: str = "test", **more: str) -> dict[str, Any]:
    sentences = [{"raw": caption} for caption in captions]
    return {"filename": name, "split": split, "sentences": sentences, **more}


@pytest.fixture
def captions(tmp_path: Path, write: Any, put_image: Callable[..., Path]) -> Path:
    write(
        [
            entry("a.png", "An owl. ", "owl"),
            entry("b.png", "A kite.", split="train"),
            entry("c.png", "A\njay", filepath="val2014"),
        ]
    )
    put_image(tmp_path / "set/images/a.png")
    put_image(tmp_path / "set/images/b.png")
    put_image(tmp_path / "set/images/val2014/c.png", value=200)
    return tmp_path / "set"


def test_split_and_folders(captions: Path, open_split: OpenSplit) -> None:
    found = open_split("test", kind="karpathy", file="karpathy.json")
    assert found.sample_ids == ["a.png", "val2014/c.png"]
    assert found.need_captions() == [["An owl.", "owl"], ["A jay"]]
    assert np.asarray(found.image(1))[0, 0, 0] == 200
    assert not found.left_over
    with pytest.raises(ConfigError, match="has no class labels"):
        found.need_labels()


def test_left_over__images_without_an_entry_and_empty_captions(
    captions: Path, write: Any, put_image: Callable[..., Path], open_split: OpenSplit
) -> None:
    put_image(captions / "images/d.png")
    write([entry("./a.png", "An owl.", " ", ""), entry("b.png", "x", split="train")])
    found = open_split("test", kind="karpathy", file="karpathy.json")
    assert found.need_captions() == [["An owl."]]
    assert found.left_over.to_json() == {
        "empty captions": {"count": 2, "first": ["a.png", "a.png"]},
        "images that the JSON file does not name": {
            "count": 2, "first": ["d.png", "val2014/c.png"],
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([entry("a.png", "x", split="val")], "no image of the split 'test'; it has val"),
        ([entry("a.png")], r"1 images have no caption, e\.g\. a\.png"),
        ([entry("a.png", "")], r"1 images have no caption, e\.g\. a\.png"),
        ([entry("a.png", "x"), entry("a.png", "y")], r"1 images occur twice, e\.g\. a\.png"),
        ([entry("no.png", "x")], r"1 of 1 images of karpathy\.json are not in .*, e\.g\. no\.png"),
        ([{"filename": 3}], "is no Karpathy split file"),
        ("pictures", "is no Karpathy split file"),
        ([entry("a.png", "x"), "b"], "is no Karpathy split file"),
    ],
)
def test_file__with_problems(
    images: Any, message: str, captions: Path, write: Any, open_split: OpenSplit
) -> None:
    write(images)
    with pytest.raises(DataError, match=message):
        open_split("test", kind="karpathy", file="karpathy.json")
