"""A folder a class: which label is which, what is left out, and names of every sort."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.data.class_table import same_classes
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError

PutImage = Callable[..., Path]
OpenSplit = Callable[..., Dataset]


@pytest.fixture
def folders(tmp_path: Path, put_image: PutImage) -> Path:
    """Three classes of two images in `val`."""
    for index, name in enumerate(("n02", "n01", "n03")):
        for image in range(2):
            put_image(tmp_path / "set/val" / name / f"{image}.png", value=10 * index)
    return tmp_path / "set"


def test_classes__are_the_sorted_folders(folders: Path, open_split: OpenSplit) -> None:
    found = open_split("val", kind="image_folder")
    assert found.class_names == ["n01", "n02", "n03"]
    assert found.need_labels().tolist() == [0, 0, 1, 1, 2, 2]
    assert found.sample_ids[0] == "n01/0.png"
    assert found.groups == found.sample_ids
    assert found.image(0).size == (6, 6)
    assert np.asarray(found.image(0))[0, 0, 0] == 10
    assert not found.left_over


@pytest.mark.parametrize("without", ["train", "val"])
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_classes__one_without_images_in_a_split_keeps_its_label(
    without: str, how: str, tmp_path: Path, put_image: PutImage, open_split: OpenSplit
) -> None:
    for split in ("train", "val"):
        for name in ("ant", "bee", "cow"):
            if (split, name) == (without, "bee"):
                if how == "empty":
                    (tmp_path / "set" / split / name).mkdir(parents=True)
                continue
            put_image(tmp_path / "set" / split / name / "0.png")
    opened = [
        open_split(split, kind="image_folder", splits=("train", "val"))
        for split in ("train", "val")
    ]
    labels = {dataset.split: dataset.need_labels().tolist() for dataset in opened}
    assert labels == {without: [0, 2], "train" if without == "val" else "val": [0, 1, 2]}
    assert same_classes(*opened).names == ("ant", "bee", "cow")


def test_classes__empty_folder_counts_in_a_split_opened_alone(
    folders: Path, open_split: OpenSplit
) -> None:
    (folders / "val" / "n00").mkdir()
    assert open_split("val", kind="image_folder").need_labels().tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.json", json.dumps([{"wnid": w, "name": n} for w, n in (("n03", "owl"),
         ("n02", "red kite"), ("n01", "jay"), ("n00", "auk"))])),
        ("classes.txt", "\ufeffn03 owl\r\nn02 red kite\r\nn01 jay\r\nn00 auk\r\n"),
    ],
)  # fmt: skip
def test_class_list__gives_order_and_names(
    name: str, content: str, folders: Path, open_split: OpenSplit
) -> None:
    (folders / name).write_text(content, encoding="utf-8")
    found = open_split("val", kind="image_folder", classes=name)
    assert found.class_names == ["owl", "red kite", "jay", "auk"]
    assert found.need_labels().tolist() == [2, 2, 1, 1, 0, 0]


def test_class_list__other_field(folders: Path, open_split: OpenSplit) -> None:
    entries = [
        {"wnid": f"n0{i}", "name": f"bird {i}", "singular": f"a bird {i}"} for i in (1, 2, 3)
    ]
    (folders / "classes.json").write_text(json.dumps(entries))
    found = open_split("val", kind="image_folder", classes="classes.json", class_field="singular")
    assert found.class_names == ["a bird 1", "a bird 2", "a bird 3"]


def test_class_list__folder_that_is_no_class(folders: Path, open_split: OpenSplit) -> None:
    (folders / "classes.json").write_text(json.dumps(["n01", "n02", "n04"]))
    with pytest.raises(
        DataError, match=r"1 folders in .* are no class of .*classes\.json, e\.g\. 'n03'"
    ):
        open_split("val", kind="image_folder", classes="classes.json")


def test_index_folders(tmp_path: Path, put_image: PutImage, open_split: OpenSplit) -> None:
    for name in ("0", "2", "10"):
        put_image(tmp_path / "set/val" / name / "a.png")
    found = open_split("val", kind="image_folder", classes="index")
    assert sorted(found.need_labels().tolist()) == [0, 2, 10]
    assert len(found.class_names) == 11


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owl", "'owl' is no class index"),
        ("9999999999", "'9999999999' is no class index"),
        ("100000", "100000 is no class index. Indices go from 0 to at most 99999"),
        ("-1", "'-1' is no class index"),
        ("01", "folders '01' and '1' are both class 1"),
    ],
)
def test_index_folders__that_are_none(
    name: str, message: str, tmp_path: Path, put_image: PutImage, open_split: OpenSplit
) -> None:
    put_image(tmp_path / "set/val/1/a.png")
    put_image(tmp_path / "set/val" / name / "a.png")
    with pytest.raises(DataError, match=message):
        open_split("val", kind="image_folder", classes="index")


def test_imagenets_classes(tmp_path: Path, put_image: PutImage, open_split: OpenSplit) -> None:
    for name in ("n01440764", "n15075141"):
        put_image(tmp_path / "set/val" / name / "a.JPEG")
    found = open_split("val", kind="image_folder", classes="imagenet-1k")
    assert found.need_labels().tolist() == [0, 999]
    assert found.class_names[0].startswith("tench")


def test_every_format_that_pillow_decodes_is_measured(folders: Path, open_split: OpenSplit) -> None:
    image = Image.new("RGB", (6, 6), (250, 0, 0))
    for name, image_format in (("a.GIF", "GIF"), ("b.jfif", "JPEG"), ("c.jp2", "JPEG2000")):
        image.save(folders / "val/n01" / name, image_format)
    found = open_split("val", kind="image_folder")
    assert [name for name in found.sample_ids if name.startswith("n01/")] == [
        "n01/0.png", "n01/1.png", "n01/a.GIF", "n01/b.jfif", "n01/c.jp2",
    ]  # fmt: skip
    assert [np.asarray(found.image(i))[0, 0, 0] >= 248 for i in (2, 3, 4)] == [True] * 3


def test_left_over__is_counted_named_and_warned_of(
    folders: Path,
    put_image: PutImage,
    open_split: OpenSplit,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_image(folders / "val/stray.png")
    for name in ("notes.txt", "phone.heic", "without_suffix", ".DS_Store"):
        (folders / "val/n01" / name).write_bytes(b"x")
    os.mkfifo(folders / "val/n01/pipe.jpg")
    with caplog.at_level(logging.WARNING):
        found = open_split("val", kind="image_folder")
        open_split("val", kind="image_folder")
    assert len(found) == 6
    assert found.left_over.to_json() == {
        "hidden by a name that begins with a dot": {"count": 1, "first": ["n01/.DS_Store"]},
        "no image by the end of the name": {
            "count": 2, "first": ["n01/notes.txt", "n01/without_suffix"],
        },
        "images of a format that the installed Pillow cannot decode": {
            "count": 1, "first": ["n01/phone.heic"],
        },
        "pipes, sockets or devices": {"count": 1, "first": ["n01/pipe.jpg"]},
        "images beside the class folders": {"count": 1, "first": ["stray.png"]},
    }  # fmt: skip
    assert len(caplog.records) == 1
    text = caplog.records[0].getMessage()
    assert "stray.png" in text and "phone.heic" in text and ".DS_Store" not in text


def test_names__of_every_sort_are_told_apart(
    tmp_path: Path, put_image: PutImage, open_split: OpenSplit
) -> None:
    folder = tmp_path / "set/val/x"
    names = ['quo"te.png', "line\nbreak.png", "A.png", "a.png", "n" * 240 + ".png", "é.png"]
    for name in names:
        put_image(folder / name)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(
        (folder / "a.png").read_bytes()
    )
    put_image(tmp_path / "set/val/y/a.png")
    found = open_split("val", kind="image_folder")
    assert sorted(found.sample_ids) == sorted(
        [*(f"x/{name}" for name in names), "x/caf\\xe9.png", "y/a.png"]
    )
    assert len(found.fingerprint) == 16
    for index in range(len(found)):
        assert found.image(index).size == (6, 6)


def test_fingerprint__follows_content_names_labels_and_split(
    tmp_path: Path, folders: Path, put_image: PutImage, open_split: OpenSplit
) -> None:
    from maskclip_bench.data.readers import forget

    def fresh(split: str = "val", **reader: object) -> str:
        forget()
        return open_split(split, kind="image_folder", **reader).fingerprint

    first = fresh()
    assert first == fresh()
    assert first != fresh(groups={"pattern": "n0."})
    (folders / "other").mkdir()
    for file in sorted(folders.glob("val/*/*")):
        target = folders / "other" / file.parent.name / file.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    assert first != fresh("other")  # equal in everything but the name of the split
    path = folders / "val/n01/0.png"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    same_size = fresh()
    assert same_size != first
    (folders / "val/n01/1.png").rename(folders / "val/n02/9.png")
    assert fresh() != same_size


def test_image__damaged_file_is_named(folders: Path, open_split: OpenSplit) -> None:
    path = folders / "val/n01/0.png"
    path.write_bytes(path.read_bytes()[:40])
    found = open_split("val", kind="image_folder")
    with pytest.raises(DataError, match=r"Cannot read .*n01/0\.png"):
        found.image(0)
    path.unlink()
    with pytest.raises(DataError, match="It is missing or damaged"):
        found.image(0)


def test_check_images__finds_the_broken_ones_by_their_headers(
    folders: Path, open_split: OpenSplit
) -> None:
    found = open_split("val", kind="image_folder")
    found.check_images()
    (folders / "val/n01/0.png").write_bytes(b"")
    (folders / "val/n02/1.png").write_bytes(b"no image")
    found.check_images()  # once
    from maskclip_bench.data.readers import forget

    forget()
    again = open_split("val", kind="image_folder")
    with pytest.raises(DataError, match=r"2 of 6 images cannot be used\. Cannot read .*n01/0\.png"):
        again.check_images()


def test_read__can_be_pickled(folders: Path, open_split: OpenSplit) -> None:
    found = open_split("val", kind="image_folder")
    again = pickle.loads(pickle.dumps(found.read))
    assert np.array_equal(np.asarray(again(3)), np.asarray(found.image(3)))


def test_split__without_images(tmp_path: Path, open_split: OpenSplit) -> None:
    (tmp_path / "set/val/n01").mkdir(parents=True)
    (tmp_path / "set/val/n01/a.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"the split 'val' .* has no image. It has 1 images of a"):
        open_split("val", kind="image_folder")


def test_all_splits_in_one_folder(
    tmp_path: Path, put_image: Callable[..., Path], open_split: Callable[..., Dataset]
) -> None:
    for name in ("forest", "river"):
        for number in range(5):
            put_image(tmp_path / f"set/pictures/{name}/{number}.png")
    declared = {"kind": "image_folder", "folder": "pictures", "train_per_class": 3}
    splits = ("train", "test")
    train, test = (open_split(split, splits=splits, **declared) for split in splits)
    assert train.need_labels().tolist() == [0] * 3 + [1] * 3
    assert test.need_labels().tolist() == [0] * 2 + [1] * 2
    assert not set(train.sample_ids) & set(test.sample_ids)
    assert len(train.files) == 6
    assert train.fingerprint != test.fingerprint
