"""What holds for a split of any reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.dataset import (
    Dataset,
    FileImages,
    IndexedImages,
    TarImages,
    hashing_told,
    shared_images,
)
from maskclip_bench.errors import ConfigError, DataError

TWO = ClassTable(("a", "b"), ("a", "b"), source="list")


def make(folder: Path, **changes: Any) -> Dataset:
    paths = [folder / "0.png", folder / "1.png"]
    for value, path in enumerate(paths):
        Image.new("RGB", (4, 4), (value, 0, 0)).save(path)
    fields: dict[str, Any] = {
        "name": "Birds",
        "split": "val",
        "sample_ids": ["0.png", "1.png"],
        "groups": ["0.png", "1.png"],
        "read": FileImages(paths),
        "files": paths,
        "labels": np.array([0, 1]),
        "classes": TWO,
    }
    return Dataset(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_ids": ["x", "x"]}, "1 images occur twice, e.g. x"),
        ({"sample_ids": ["x", "\ud800"]}, r"the id \\ud800 holds half characters"),
        ({"groups": ["x"]}, "1 groups for 2 images"),
        ({"captions": [["x"]]}, "1 captions for 2 images"),
        ({"captions": [["x"], ["y", " "]]}, r"a caption of 1\.png is empty"),
        ({"captions": [["x \udc00"], ["y"]]}, r"a caption of 0\.png holds half characters"),
        ({"labels": np.array([0, 2])}, r"1 labels are no class, e\.g\. 2 of 1\.png; there are 2"),
        ({"labels": np.array([-1, 0])}, r"1 labels are no class, e\.g\. -1 of 0\.png"),
        ({"classes": None}, "2 labels are no class"),
    ],
)
def test_split__that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        make(tmp_path, **changes)


def test_fingerprint__does_not_follow_the_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = make(tmp_path / "a")
    assert first.fingerprint == make(tmp_path / "b", name="Other").fingerprint
    changed: list[dict[str, Any]] = [
        {"split": "train"},
        {"labels": np.array([1, 0])},
        {"groups": ["x", "x"]},
        {"classes": ClassTable(("a", "c"), ("a", "c"))},
        {"captions": [["x"], ["y"]]},
        {"identity": {"option": 1}},
        {"sample_ids": ["0.png", "2.png"]},
    ]
    prints = {make(tmp_path / "b", **changes).fingerprint for changes in changed}
    assert len(prints | {first.fingerprint}) == len(changed) + 1


def test_fingerprint__tells_its_progress_in_bytes(tmp_path: Path) -> None:
    dataset = make(tmp_path)
    told: list[tuple[int, int]] = []
    dataset.hash_files(lambda done, total: told.append((done, total)))
    size = sum(path.stat().st_size for path in dataset.files)
    assert told[-1] == (size, size)
    assert dataset.hash_files() == dataset.fingerprint


def test_fingerprint__hashing_is_told_to_who_listens(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    with hashing_told(lambda *state: told.append(state)):
        make(tmp_path).hash_files()
    assert told and told[-1][0] == "hashing val, MB"
    before = len(told)
    make(tmp_path).hash_files()
    assert len(told) == before


def test_needs(tmp_path: Path) -> None:
    dataset = make(tmp_path, labels=None, classes=None)
    with pytest.raises(ConfigError, match="has no class labels"):
        dataset.need_labels()
    with pytest.raises(ConfigError, match="has no captions"):
        dataset.need_captions()
    assert dataset.class_names == []


def test_check_images__tells_progress_and_skips_readers_without_files(tmp_path: Path) -> None:
    told: list[str] = []
    make(tmp_path).check_images(lambda stage, done, total: told.append(f"{stage} {done}/{total}"))
    assert told == ["checking image files 0/2"]
    make(tmp_path, read=lambda index: None).check_images()


def test_tar_images__errors_name_member_and_shard(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    shard.write_bytes(b"no image")
    read = TarImages([(shard, 0, 8)], ["0.tar/key"])
    with pytest.raises(DataError, match=r"Cannot read 0\.tar/key in .*0\.tar"):
        read(0)
    shard.unlink()
    with pytest.raises(DataError, match="Copy or download the shard again"):
        read.check(0)


def test_indexed_images__any_error_names_the_image() -> None:
    read = IndexedImages([(Image.new("L", (2, 2), 9), 0)], [0, 5], "Birds")
    assert np.asarray(read(0)).tolist() == [[[9, 9, 9]] * 2] * 2
    with pytest.raises(DataError, match=r"Cannot read image 5 of Birds \(IndexError"):
        read(1)


def test_take__some_images_in_a_new_order(tmp_path: Path) -> None:
    dataset = make(tmp_path, captions=[["x"], ["y"]], image_paths=["0.png", "1.png"])
    assert dataset.take([0, 1]) is dataset
    part = dataset.take([1])
    assert (part.sample_ids, part.captions, part.image_paths) == (["1.png"], [["y"]], ["1.png"])
    assert part.need_labels().tolist() == [1]
    assert np.asarray(part.image(0))[0, 0, 0] == 1
    assert part.fingerprint not in (dataset.fingerprint, dataset.take([0]).fingerprint)
    part.check_images()
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 1 images cannot be used"):
        dataset.take([1]).check_images()


def test_check_masks__once_for_a_number_of_classes(tmp_path: Path) -> None:
    dataset = make(tmp_path)
    masks = [tmp_path / "m0.png", tmp_path / "m1.png"]
    for mask in masks:
        Image.new("L", dataset.image(0).size, 2).save(mask)
    paths = {"image_paths": [tmp_path / "0.png", tmp_path / "1.png"], "annotations": masks}
    dataset = make(tmp_path, **paths)
    dataset.check_masks(2)
    Image.new("L", (9, 4), 2).save(masks[1])
    with pytest.raises(DataError, match=r"1 of 2 masks .* are not of their image's size"):
        make(tmp_path, **paths).check_masks(2)
    Image.new("L", dataset.image(0).size, 3).save(masks[1])
    dataset.check_masks(2)
    with pytest.raises(DataError, match=r"m1\.png is no mask of 2 classes"):
        make(tmp_path, annotations=masks).check_masks(2)


def test_several_classes_an_image__are_checked() -> None:
    def made(values: list[list[int]]) -> Dataset:
        return Dataset(
            name="Birds",
            split="test",
            sample_ids=["a", "b"],
            groups=["a", "b"],
            read=lambda index: Image.new("RGB", (2, 2)),
            files=[],
            classes=ClassTable(("x", "y"), ("x", "y")),
            multi_labels=np.array(values, dtype=np.int8),
        )

    assert made([[1, 0], [-1, 1]]).take([1]).need_multi_labels().tolist() == [[-1, 1]]
    assert made([[1, 0], [-1, 1]]).fingerprint != made([[1, 0], [0, 1]]).fingerprint
    with pytest.raises(DataError, match=r"labels of several classes are \[2, 1\] with the values"):
        made([[1], [0]])
    with pytest.raises(DataError, match=r"the values \[0, 1, 2\]; they should be \[2, 2\]"):
        made([[1, 2], [0, 0]])
    with pytest.raises(ConfigError, match="has one class an image, and this metric needs images"):
        Dataset(
            name="Birds", split="test", sample_ids=[], groups=[], files=[],
            read=lambda index: Image.new("RGB", (2, 2)),
        ).need_multi_labels()  # fmt: skip


def test_shared_images__links_to_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    one = make(tmp_path / "a", image_paths=[tmp_path / "a" / f"{i}.png" for i in (0, 1)])
    same = make(tmp_path / "a", image_paths=[tmp_path / "b" / f"{i}.png" for i in (1, 2)])
    assert shared_images(one, same) == ["0.png"]
    assert shared_images(one, make(tmp_path / "a")) == []
