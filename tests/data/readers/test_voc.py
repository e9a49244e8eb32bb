"""VOC's layout: several classes an image, and objects that are difficult."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.data.readers import Dataset, ReaderDeclaration, missing_files
from maskclip_bench.data.readers.voc import VOC
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.testing import check_reader
from tests.data.small_sets import image, text

OpenSplit = Callable[..., Dataset]


@pytest.fixture
def main(tmp_path: Path) -> Path:
    folder = tmp_path / "set/VOCdevkit/VOC2007"
    for name in ("000001", "000002", "000003"):
        image(folder / f"JPEGImages/{name}.jpg")
    for split, ids in (("trainval", "000003\n"), ("test", "000001\n000002\n")):
        text(folder / f"ImageSets/Main/{split}.txt", ids)
    text(folder / "ImageSets/Main/cat_test.txt", "000001  1\n000002 -1\n")
    text(folder / "ImageSets/Main/dog_test.txt", "000001  1\n000002  0\n")
    text(folder / "ImageSets/Main/cat_trainval.txt", "000003 -1\n")
    text(folder / "ImageSets/Main/dog_trainval.txt", "000003  1\n")
    return folder / "ImageSets/Main"


def test_several_classes_an_image(main: Path, open_split: OpenSplit) -> None:
    dataset = open_split("test", kind="voc", splits=("trainval", "test"))
    assert dataset.sample_ids == ["000001", "000002"]
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.need_multi_labels().tolist() == [[1, 1], [0, -1]]
    assert dataset.image(0).mode == "RGB"
    assert dataset.take([1]).need_multi_labels().tolist() == [[0, -1]]


@pytest.mark.parametrize(("difficult", "value"), [("present", 1), ("absent", 0)])
def test_difficult_objects_may_count(
    main: Path, open_split: OpenSplit, difficult: str, value: int
) -> None:
    dataset = open_split("test", kind="voc", difficult=difficult)
    assert dataset.need_multi_labels().tolist() == [[1, 1], [0, value]]
    plain = open_split("test", kind="voc")
    assert plain.fingerprint != dataset.fingerprint


def test_one_label_is_refused(main: Path, open_split: OpenSplit) -> None:
    with pytest.raises(ConfigError, match=r"has several classes an image, which this protocol"):
        open_split("test", kind="voc").need_labels()


def test_lists__that_contradict_themselves(main: Path, open_split: OpenSplit) -> None:
    text(main / "dog_test.txt", "000001 1\n000002 -1\n000001 1\n")
    open_split("test", kind="voc")
    text(main / "dog_test.txt", "000001 1\n000002 -1\n000001 -1\n")
    with pytest.raises(DataError, match=r"line 3 of .* says something else of 000001 than a line"):
        open_split("test", kind="voc", difficult="absent")


def test_broken(main: Path, open_split: OpenSplit, tmp_path: Path) -> None:
    text(main / "dog_test.txt", "000001 yes\n")
    with pytest.raises(DataError, match=r"line 1 of .*dog_test.txt is '000001 yes'. It should be"):
        open_split("test", kind="voc")
    text(main / "dog_test.txt", "000001 1\n")
    with pytest.raises(DataError, match=r"says nothing of 1 of 2 images, e.g. 000002"):
        open_split("test", kind="voc")
    (main / "dog_test.txt").unlink()
    with pytest.raises(DataError, match=r"has no list of dog for the split 'test'"):
        open_split("test", kind="voc", splits=("trainval", "test"))
    text(main / "dog_test.txt", "000001 1\n000002 1\n")
    (tmp_path / "set/VOCdevkit/VOC2007/JPEGImages/000002.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images of test.txt are not in"):
        open_split("test", kind="voc")
    reader = ReaderDeclaration(kind="voc", root="set")  # type: ignore[call-arg]
    assert "no file" in (missing_files(reader, ["other"], tmp_path) or "")


def test_conformance(main: Path, tmp_path: Path) -> None:
    check_reader(VOC(root="set"), splits=("trainval", "test"), data_root=tmp_path)
