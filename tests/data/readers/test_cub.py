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


@pytest.mark.parametrize(
    ("name", "lines", "text"),
    [
        ("images.txt", None, "line 5 of .* lists the number 1 again"),
        ("train_test_split.txt", "1 1\n2 0\n3 1\n4 2\n", r"says 2 of 1 images; 1 is train"),
        ("image_class_labels.txt", "1 2\n2 1\n3 2\n4 2\n", "1 images are in the folder of another"),
    ],
)
def test_lists__that_do_not_fit(
    birds: Path, open_split: OpenSplit, name: str, lines: str | None, text: str
) -> None:
    path = birds / name
    path.write_text(lines or path.read_text() + path.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match=text):
        open_split("test", kind="cub")


def test_left_over__images_that_no_list_names(birds: Path, open_split: OpenSplit) -> None:
    named = next((birds / "images").rglob("d.jpg"))
    named.with_name("e.jpg").write_bytes(named.read_bytes())
    left_over = open_split("test", kind="cub").left_over.to_json()
    assert left_over["images that images.txt does not name"]["count"] == 1


def test_conformance(birds: Path, tmp_path: Path) -> None:
    check_reader(CUB(root="set"), splits=("train", "test"), data_root=tmp_path)
