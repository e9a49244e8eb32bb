"""CUB's lists beside its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.data.readers import Dataset
from maskclip_bench.data.readers.cub import CUB
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.testing import check_reader
from tests.data.small_sets import cub200, text

OpenSplit = Callable[..., Dataset]


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    cub200(tmp_path)
    (tmp_path / "cub200/CUB_200_2011").rename(tmp_path / "set")
    return tmp_path / "set"


def test_official_split(birds: Path, open_split: OpenSplit) -> None:
    train, test = (open_split(split, kind="cub") for split in ("train", "test"))
    assert [name[-5] for name in train.sample_ids] == ["a", "c"]
    assert [name[-5] for name in test.sample_ids] == ["b", "d"]
    assert test.need_labels().tolist() == [0, 1]
    assert test.class_names == ["Black footed Albatross", "Laysan Albatross"]
    with pytest.raises(ConfigError, match=r"has the splits train and test, not 'val'"):
        open_split("val", kind="cub")


def test_broken(birds: Path, open_split: OpenSplit) -> None:
    text(birds / "image_class_labels.txt", "1 1\n2 1\n3 2\n4 9\n")
    with pytest.raises(DataError, match=r"1 images have a class that classes.txt does not list"):
        open_split("test", kind="cub")
    text(birds / "image_class_labels.txt", "1 1\n2 1\n3 2\n")
    with pytest.raises(DataError, match=r"image_class_labels.txt does not list 1 of 4 images"):
        open_split("test", kind="cub")
    text(birds / "image_class_labels.txt", "1 1 1\n")
    with pytest.raises(DataError, match=r"line 1 of .* is '1 1 1'. It should be a number"):
        open_split("test", kind="cub")
    text(birds / "image_class_labels.txt", "1 1\n2 1\n3 2\n4 2\n")
    next((birds / "images").rglob("d.jpg")).unlink()
    with pytest.raises(DataError, match=r"1 of 2 images are not in"):
        open_split("test", kind="cub")


def test_conformance(birds: Path, tmp_path: Path) -> None:
    check_reader(CUB(root="set"), splits=("train", "test"), data_root=tmp_path)
