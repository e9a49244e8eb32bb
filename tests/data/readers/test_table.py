"""Tables that name images, or hold them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskclip_bench.data.readers import Dataset
from maskclip_bench.data.readers.table import Table
from maskclip_bench.errors import DataError
from maskclip_bench.testing import check_reader

OpenSplit = Callable[..., Dataset]
Put = Callable[..., Path]
Png = Callable[[int], bytes]


@pytest.fixture
def folder(tmp_path: Path, put_image: Put) -> Path:
    for number in range(4):
        put_image(tmp_path / f"set/pictures/{number}.png", value=10 * number)
    return tmp_path / "set"


def rows(folder: Path, suffix: str, table: dict[str, list[Any]]) -> None:
    path = folder / f"test{suffix}"
    lines = list(zip(*table.values(), strict=True))
    if suffix == ".parquet":
        pq.write_table(pa.table(table), path, row_group_size=2)
    elif suffix == ".jsonl":
        objects = [dict(zip(table, line, strict=True)) for line in lines]
        path.write_text("".join(json.dumps(each) + "\n\n" for each in objects))
    else:
        separator = "\t" if suffix == ".tsv" else ","
        text = [list(table), *lines]
        path.write_text("\n".join(separator.join(map(str, line)) for line in text))


PICTURES = {"image": [f"{number}.png" for number in range(3)]}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_formats(folder: Path, open_split: OpenSplit, suffix: str) -> None:
    rows(folder, suffix, {**PICTURES, "is": ["owl", "bat", "owl"], "not_read": [1, 2, 3]})
    dataset = open_split(
        "test", kind="table", file="{split}" + suffix, image="image", images="pictures", label="is"
    )
    assert dataset.sample_ids == PICTURES["image"]
    assert dataset.class_names == ["bat", "owl"]
    assert dataset.need_labels().tolist() == [1, 0, 1]
    assert np.asarray(dataset.image(2))[0, 0, 0] == 20


def test_indices_and_class_list(folder: Path, open_split: OpenSplit) -> None:
    rows(folder, ".csv", {**PICTURES, "label": [2, 0, 10]})
    declared = {"kind": "table", "file": "{split}.csv", "image": "image", "images": "pictures"}
    dataset = open_split("test", **declared, label="label")
    assert (dataset.need_labels().tolist(), len(dataset.class_names)) == ([2, 0, 10], 11)
    rows(folder, ".csv", {**PICTURES, "label": ["owl", "bat", "owl"]})
    (folder / "classes.json").write_text('["owl", "cow", "bat"]')
    listed = open_split("test", **declared, label="label", classes="classes.json")
    assert listed.need_labels().tolist() == [0, 2, 0]


def test_captions_of_one_image_are_one_sample(folder: Path, open_split: OpenSplit) -> None:
    names = ["0.png", "1.png", "0.png"]
    rows(folder, ".tsv", {"image": names, "a": ["x  y", "z", "w"], "b": ["", "v", "u"]})
    declared: dict[str, Any] = {"kind": "table", "file": "{split}.tsv", "image": "image"}
    declared |= {"images": "pictures", "captions": ["a", "b"]}
    dataset = open_split("test", **declared)
    assert dataset.sample_ids == ["0.png", "1.png"]
    assert dataset.need_captions() == [["x y", "w", "u"], ["z", "v"]]
    rows(folder, ".tsv", {"image": ["0.png"], "a": [" "], "b": [""]})
    with pytest.raises(DataError, match=r"1 images of .*test.tsv have no caption, e.g. 0.png"):
        open_split("test", **(declared | {"split_column": None, "classes": "changed"}))


def test_one_table_of_all_splits(folder: Path, open_split: OpenSplit) -> None:
    rows(folder, ".csv", {**PICTURES, "label": [0, 1, 1], "part": ["train", "test", "test"]})
    (folder / "test.csv").rename(folder / "all.csv")
    declared: dict[str, Any] = {"kind": "table", "file": "all.csv", "image": "image"}
    declared |= {"images": "pictures", "label": "label", "split_column": "part"}
    assert open_split("train", **declared).sample_ids == ["0.png"]
    assert open_split("test", **declared).sample_ids == ["1.png", "2.png"]
    with pytest.raises(DataError, match=r"no row of .* is of the split 'val'; the column 'part'"):
        open_split("val", **declared)


@pytest.mark.parametrize("in_struct", [True, False])
def test_parquet_that_holds_images(
    folder: Path, open_split: OpenSplit, png: Png, in_struct: bool
) -> None:
    images: list[Any] = [png(number) for number in range(5)]
    if in_struct:
        images = [{"bytes": each, "path": f"{n}.png"} for n, each in enumerate(images)]
    rows(folder, ".parquet", {"image": images, "label": [0, 1, 0, 1, 0]})
    dataset = open_split("test", kind="table", file="{split}.parquet", image="image", label="label")
    first = "0.png" if in_struct else "00000000"
    assert (len(dataset), dataset.sample_ids[0]) == (5, first)
    read = pickle.loads(pickle.dumps(dataset.read))
    assert [np.asarray(read(index))[0, 0, 0].item() for index in (4, 0, 3)] == [4, 0, 3]
    dataset.check_images()
    images[1] = {"bytes": b"", "path": "1.png"} if in_struct else b""
    rows(folder, ".parquet", {"image": images, "label": [0, 1, 0, 1, 0]})
    again = open_split(
        "test", kind="table", file="{split}.parquet", image="image", label="label", images="./"
    )
    with pytest.raises(DataError, match=r"row 1 of .* holds no image"):
        again.check_images()


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".csv", b"image,label\n9.png,0\n", "1 of 1 images of test.csv are not in"),
        (".csv", b"image,label\n0.png,\n", "1 of 1 rows of .* have no 'label'"),
        (".csv", b"picture,label\n0.png,0\n", "no column 'image'"),
        (".jsonl", b'{"image": "0.png"}\n', r"line 1 of .* gives no image, label \(KeyError"),
        (".jsonl", b"[\n", r"line 1 of .* \(JSONDecodeError"),
        (".parquet", b"no", "is no Parquet table that can be read"),
        (".xlsx", b"", r"is no table that can be read here. Its name should end with .csv"),
    ],
)
def test_broken(
    folder: Path, open_split: OpenSplit, suffix: str, content: bytes, message: str
) -> None:
    (folder / f"test{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_split(
            "test",
            kind="table",
            file="{split}" + suffix,
            image="image",
            images="pictures",
            label="label",
        )


def test_parquet__column_that_is_not_there(folder: Path, open_split: OpenSplit) -> None:
    rows(folder, ".parquet", {"picture": ["0.png"], "label": [0]})
    with pytest.raises(DataError, match=r"no column 'image'. It has: picture, label"):
        open_split("test", kind="table", file="{split}.parquet", image="image")


def test_conformance(folder: Path, tmp_path: Path) -> None:
    rows(folder, ".csv", {**PICTURES, "label": [0, 1, 1], "part": ["train", "test", "test"]})
    reader = Table(
        root="set", file="test.csv", image="image", images="pictures", label="label",
        split_column="part",
    )  # fmt: skip
    check_reader(reader, splits=("train", "test"), data_root=tmp_path)


def declared(suffix: str) -> dict[str, Any]:
    named = {"kind": "table", "file": "{split}" + suffix, "image": "image", "images": "pictures"}
    return {**named, "label": "label"}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_labels__whole_floats_are_indices(folder: Path, open_split: OpenSplit, suffix: str) -> None:
    rows(folder, suffix, {**PICTURES, "label": [2.0, 10.0, 0.0]})
    dataset = open_split("test", **declared(suffix))
    assert (dataset.need_labels().tolist(), len(dataset.class_names)) == ([2, 10, 0], 11)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, -1, 1], "-1 is no class index, and -1 often means that a label is not known"),
        ([0.5, 0, 1], r"row 1 of .*, column 'label': 0\.5 is no text and no whole number"),
        ([[0], [1], [0]], r"\[0\] is no text and no whole number"),
        (["owl", "owl ", "bat"], "'owl' and 'owl ' look the same and would be two classes"),
        (["caf\u00e9", "cafe\u0301", "bat"], r"'cafe\\u0301' and 'caf\\xe9' look the same"),
    ],
)
def test_labels__that_are_none(
    folder: Path, open_split: OpenSplit, labels: list[Any], text: str
) -> None:
    rows(folder, ".jsonl", {**PICTURES, "label": labels})
    with pytest.raises(DataError, match=text):
        open_split("test", **declared(".jsonl"))


def test_captions__lists_and_what_is_no_text(folder: Path, open_split: OpenSplit) -> None:
    rows(folder, ".jsonl", {**PICTURES, "a": [["x", "y"], "z", ["w", None]]})
    several = {**declared(".jsonl"), "label": None, "captions": ["a"]}
    assert open_split("test", **several).need_captions() == [["x", "y"], ["z"], ["w"]]
    rows(folder, ".jsonl", {**PICTURES, "a": ["x", 5, "z"]})
    with pytest.raises(DataError, match=r"row 2 of .*, column 'a': 5 is no caption"):
        open_split("test", **several | {"images": "./pictures"})


def test_rows__of_one_image(folder: Path, open_split: OpenSplit) -> None:
    names = ["0.png", "./0.png", "1.png"]
    rows(folder, ".csv", {"image": names, "label": ["owl", "bat", "bat"], "a": ["x", "y", "z"]})
    with pytest.raises(DataError, match=r"1 images of .* have rows of several classes, e\.g\. 0"):
        open_split("test", **declared(".csv"), captions=["a"])
    with pytest.raises(DataError, match=r"1 images occur twice, e\.g\. 0\.png"):
        open_split("test", **declared(".csv"))


def test_jsonl__a_key_given_twice(folder: Path, open_split: OpenSplit) -> None:
    (folder / "test.jsonl").write_text('{"image": "0.png", "label": 1, "label": 2}')
    with pytest.raises(DataError, match="the key 'label' is given twice"):
        open_split("test", **declared(".jsonl"))


def test_csv__a_header_alone(folder: Path, open_split: OpenSplit) -> None:
    (folder / "test.csv").write_text("image,label\n")
    with pytest.raises(DataError, match=r"the split 'test' in .* has no image"):
        open_split("test", **declared(".csv"))
