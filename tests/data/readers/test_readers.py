from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from maskclip_bench.config import validate
from maskclip_bench.data.class_table import read_class_list
from maskclip_bench.data.readers import (
    Dataset,
    ReaderDeclaration,
    missing_files,
    open_dataset,
)
from maskclip_bench.errors import ConfigError, DataError


def reader(**values: Any) -> ReaderDeclaration:
    return validate({"root": "set", **values}, ReaderDeclaration, where="reader")


def put_image(path: Path, *, size: int = 6, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value, 0, 0)).save(path)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for index, name in enumerate(("n02", "n01", "n03")):
        for image in range(2):
            put_image(tmp_path / "set" / "val" / name / f"{image}.png", value=10 * index)
    put_image(tmp_path / "set" / "val" / "stray.png")
    (tmp_path / "set" / "val" / "n01" / "notes.txt").write_text("no image")
    return tmp_path


def open_val(root: Path, **values: Any) -> Dataset:
    return open_dataset(reader(kind="image_folder", **values), "val", root, what="Birds")


def test_image_folder__sorted_folders_are_the_classes(folders: Path) -> None:
    found = open_val(folders)
    assert found.class_names == ["n01", "n02", "n03"]
    assert found.need_labels().tolist() == [0, 0, 1, 1, 2, 2]
    assert found.sample_ids[0] == "n01/0.png"
    assert found.groups == found.sample_ids
    assert found.image(0).size == (6, 6)
    assert np.asarray(found.image(0))[0, 0, 0] == 10


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.json", json.dumps([{"wnid": w, "name": n} for w, n in (("n03", "owl"),
         ("n02", "red kite"), ("n01", "jay"), ("n00", "auk"))])),
        ("classes.txt", "n03 owl\nn02 red kite\nn01 jay\nn00 auk\n"),
    ],
)  # fmt: skip
def test_image_folder__class_list_gives_order_and_names(
    name: str, content: str, folders: Path
) -> None:
    (folders / "set" / name).write_text(content)
    found = open_val(folders, classes=name)
    assert found.class_names == ["owl", "red kite", "jay", "auk"]
    assert found.need_labels().tolist() == [2, 2, 1, 1, 0, 0]


def test_image_folder__other_field_of_the_class_list(folders: Path) -> None:
    entries = [
        {"wnid": f"n0{i}", "name": f"bird {i}", "singular": f"a bird {i}"} for i in (1, 2, 3)
    ]
    (folders / "set" / "classes.json").write_text(json.dumps(entries))
    found = open_val(folders, classes="classes.json", class_field="singular")
    assert found.class_names == ["a bird 1", "a bird 2", "a bird 3"]


def test_image_folder__folder_that_is_no_class(folders: Path) -> None:
    (folders / "set" / "classes.json").write_text(json.dumps(["n01", "n02", "n04"]))
    with pytest.raises(
        DataError, match=r"1 folders in .* are no class of classes\.json, e\.g\. 'n03'"
    ):
        open_val(folders, classes="classes.json")


@pytest.mark.parametrize("content", ["{", '[{"title": "owl"}]', "[1, 2]"])
def test_class_list__broken(content: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(DataError, match="is no class list"):
        read_class_list(path)
    with pytest.raises(DataError, match="No class list"):
        read_class_list(tmp_path / "none.json")


def test_image_folder__index_folders(tmp_path: Path) -> None:
    for name in ("0", "2", "10"):
        put_image(tmp_path / "set" / "val" / name / "a.png")
    found = open_val(tmp_path, classes="index")
    assert sorted(found.need_labels().tolist()) == [0, 2, 10]
    assert len(found.class_names) == 11
    put_image(tmp_path / "set" / "val" / "owl" / "a.png")
    with pytest.raises(DataError, match="'owl' is no class index"):
        open_dataset(reader(kind="image_folder", classes="index"), "val", tmp_path, what="Other")


def test_image_folder__imagenets_classes(tmp_path: Path) -> None:
    for name in ("n01440764", "n15075141"):
        put_image(tmp_path / "set" / "val" / name / "a.JPEG")
    found = open_val(tmp_path, classes="imagenet-1k")
    assert found.need_labels().tolist() == [0, 999]
    assert found.class_names[0].startswith("tench")


@pytest.mark.parametrize("kind", ["dict", "objects", "list", "csv", "parquet"])
def test_groups__from_a_sidecar(kind: str, folders: Path) -> None:
    names = [f"n0{c}/{i}.png" for c in (1, 2, 3) for i in (0, 1)]
    table = {name: f"drawing-{name[2]}" for name in names}
    path, field = folders / "set" / "val.json", None
    if kind == "dict":
        path.write_text(json.dumps(table))
    elif kind == "objects":
        path.write_text(json.dumps({name: {"drawing": group} for name, group in table.items()}))
        field = "drawing"
    elif kind == "list":
        path.write_text(json.dumps([{"path": n, "group": g} for n, g in table.items()]))
    else:
        frame = pd.DataFrame({"path": list(table), "group": list(table.values())})
        path = path.with_suffix(f".{kind}")
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    found = open_val(folders, groups={"file": f"{{split}}{path.suffix}", "field": field})
    assert found.groups == ["drawing-1"] * 2 + ["drawing-2"] * 2 + ["drawing-3"] * 2


def test_groups__from_a_pattern(folders: Path) -> None:
    assert open_val(folders, groups={"pattern": "n0(?P<group>.)"}).groups[::2] == ["1", "2", "3"]
    assert open_val(folders, groups={"pattern": "n0."}).groups[::2] == ["n01", "n02", "n03"]
    with pytest.raises(DataError, match=r"'x\(\.\)' is not found in 'n01/0.png'"):
        open_val(folders, groups={"pattern": "x(.)"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "names no group for 6 of 6 images, e.g. n01/0.png"),
        ("3", "is no list of groups"),
        (None, "No file of groups"),
    ],
)
def test_groups__broken_sidecar(content: str | None, message: str, folders: Path) -> None:
    if content is not None:
        (folders / "set" / "val.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_val(folders, groups={"file": "{split}.json"})


def test_fingerprint__follows_names_sizes_and_labels(folders: Path, tmp_path: Path) -> None:
    def fresh(what: str, **values: Any) -> str:  # another name, so that no listing is kept
        return open_dataset(
            reader(kind="image_folder", **values), "val", folders, what=what
        ).fingerprint

    first = fresh("a")
    assert first == fresh("b")
    assert first != fresh("c", groups={"pattern": "n0."})
    put_image(folders / "set" / "val" / "n01" / "0.png", size=50)
    bigger = fresh("d")
    assert bigger != first
    (folders / "set" / "val" / "n01" / "1.png").rename(folders / "set" / "val" / "n02" / "9.png")
    assert fresh("e") != bigger


def test_image__damaged_file_is_named(folders: Path) -> None:
    path = folders / "set" / "val" / "n01" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    found = open_val(folders)
    with pytest.raises(DataError, match=r"Cannot read .*n01/0\.png"):
        found.image(0)
    path.unlink()
    with pytest.raises(DataError, match="It is missing or damaged"):
        found.image(0)


def test_image__grey_and_palette_become_rgb(folders: Path) -> None:
    Image.new("L", (6, 6), 7).save(folders / "set" / "val" / "n01" / "0.png")
    Image.new("P", (6, 6)).save(folders / "set" / "val" / "n01" / "1.png")
    found = open_val(folders)
    assert found.image(0).mode == found.image(1).mode == "RGB"


def test_missing__split_is_named_before_anything_is_read(folders: Path) -> None:
    assert missing_files(reader(kind="image_folder"), ["val"], folders) is None
    missing = missing_files(reader(kind="image_folder"), ["val", "train"], folders)
    assert missing == f"no folder {folders / 'set' / 'train'}"
    with pytest.raises(DataError, match=r"Birds: no folder .*train"):
        open_dataset(reader(kind="image_folder"), "train", folders, what="Birds")


def test_empty_split(tmp_path: Path) -> None:
    (tmp_path / "set" / "val" / "n01").mkdir(parents=True)
    with pytest.raises(DataError, match=r"the split 'val' .* holds no image"):
        open_val(tmp_path)


def test_read__can_be_pickled(folders: Path) -> None:
    found = open_val(folders)
    again = pickle.loads(pickle.dumps(found.read))
    assert np.array_equal(np.asarray(again(3)), np.asarray(found.image(3)))


# --- captions, masks, boxes ----------------------------------------------------------------------


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    images = [
        {"filename": "a.png", "split": "test", "sentences": [{"raw": "An owl. "}, {"raw": "owl"}]},
        {"filename": "b.png", "split": "train", "sentences": [{"raw": "A kite."}]},
        {"filename": "c.png", "filepath": "val2014", "split": "test",
         "sentences": [{"raw": "A\njay"}]},
    ]  # fmt: skip
    put_image(tmp_path / "set" / "images" / "a.png")
    put_image(tmp_path / "set" / "images" / "val2014" / "c.png", value=200)
    (tmp_path / "set" / "karpathy.json").write_text(json.dumps({"images": images}))
    return tmp_path


def test_karpathy__split_and_folders(captions: Path) -> None:
    found = open_dataset(reader(kind="karpathy", file="karpathy.json"), "test", captions)
    assert found.sample_ids == ["a.png", "val2014/c.png"]
    assert found.need_captions() == [["An owl.", "owl"], ["A jay"]]
    assert np.asarray(found.image(1))[0, 0, 0] == 200
    with pytest.raises(ConfigError, match="has no class labels"):
        found.need_labels()


def test_karpathy__problems(captions: Path) -> None:
    declaration = reader(kind="karpathy", file="karpathy.json")
    with pytest.raises(DataError, match="no image of the split 'val'; it has test, train"):
        open_dataset(declaration, "val", captions)
    with pytest.raises(ConfigError, match="'file' is missing"):
        reader(kind="karpathy")
    path = captions / "set" / "karpathy.json"
    path.write_text('{"images": [{"filename": "a.png", "split": "test", "sentences": []}]}')
    with pytest.raises(DataError, match=r"1 images have no caption, e.g. a.png"):
        open_dataset(declaration, "test", captions, what="again")
    path.write_text('{"pictures": []}')
    with pytest.raises(DataError, match="is no Karpathy split file"):
        open_dataset(declaration, "test", captions, what="once more")


def test_ade20k__pairs_images_with_masks(tmp_path: Path) -> None:
    put_image(tmp_path / "set" / "images" / "validation" / "a.jpg")
    masks = tmp_path / "set" / "annotations" / "validation"
    masks.mkdir(parents=True)
    (tmp_path / "set" / "classes.json").write_text(json.dumps(["sky", "owl"]))
    declaration = reader(kind="ade20k", classes="classes.json")
    with pytest.raises(DataError, match=r"1 of 1 images .* have no mask, e\.g\. .*a\.png"):
        open_dataset(declaration, "validation", tmp_path)
    Image.new("L", (6, 6)).save(masks / "a.png")
    found = open_dataset(declaration, "validation", tmp_path)
    assert found.class_names == ["sky", "owl"]
    assert found.annotations == [masks / "a.png"]


def test_coco__names_its_annotation_file(tmp_path: Path) -> None:
    put_image(tmp_path / "set" / "val" / "1.jpg")
    path = tmp_path / "set" / "annotations" / "instances_val.json"
    path.parent.mkdir()
    path.write_text(
        json.dumps({"images": [{"file_name": "1.jpg"}], "categories": [{"name": "owl"}]})
    )
    found = open_dataset(reader(kind="coco_instances"), "val", tmp_path)
    assert (found.sample_ids, found.class_names) == (["1.jpg"], ["owl"])
    assert found.annotations == [path]
    path.write_text("{}")
    with pytest.raises(DataError, match="is no COCO instance file"):
        open_dataset(reader(kind="coco_instances"), "val", tmp_path, what="again")


# --- webdataset, torchvision ---------------------------------------------------------------------


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_webdataset__labels(tmp_path: Path) -> None:
    for shard in (0, 1):
        members = {}
        for i in range(2):
            members[f"s{i}.png"] = png(100 * shard + i)
            members[f"s{i}.cls"] = str((shard + i) % 2).encode()
        write_shard(tmp_path / "set" / "test" / f"{shard}.tar", members)
    (tmp_path / "set" / "classnames.txt").write_text("owl\nred kite\n")
    found = open_dataset(reader(kind="webdataset"), "test", tmp_path)
    assert found.need_labels().tolist() == [0, 1, 1, 0]
    assert found.class_names == ["owl", "red kite"]
    assert found.sample_ids[3] == "1.tar/s1"
    assert [int(np.asarray(found.image(i))[0, 0, 0]) for i in range(4)] == [0, 1, 100, 101]


def test_webdataset__captions_and_problems(tmp_path: Path) -> None:
    shard = tmp_path / "set" / "test" / "0.tar"
    write_shard(shard, {"a.png": png(1), "a.txt": b"An owl\nA bird\n"})
    found = open_dataset(reader(kind="webdataset"), "test", tmp_path)
    assert found.captions == [["An owl", "A bird"]]
    write_shard(shard, {"a.png": png(1), "b.png": png(2), "b.cls": b"1"})
    with pytest.raises(DataError, match=r"1 of 2 samples .* have neither"):
        open_dataset(reader(kind="webdataset"), "test", tmp_path, what="again")
    shard.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"0\.tar is broken"):
        open_dataset(reader(kind="webdataset"), "test", tmp_path, what="once more")


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    """The one torchvision data set that is plain folders."""
    for name in ("Forest", "River"):
        for image in range(5):
            put_image(tmp_path / "set" / "eurosat" / "2750" / name / f"{image}.jpg")
    return tmp_path


def test_torchvision__split_by_class(eurosat: Path) -> None:
    declaration = reader(kind="torchvision", dataset="EuroSAT", train_per_class=3)
    train = open_dataset(declaration, "train", eurosat)
    test = open_dataset(declaration, "test", eurosat)
    assert train.need_labels().tolist() == [0] * 3 + [1] * 3
    assert test.need_labels().tolist() == [0] * 2 + [1] * 2
    assert not set(train.sample_ids) & set(test.sample_ids)
    assert train.class_names == ["Forest", "River"]
    assert test.image(0).size == (6, 6)
    assert train.fingerprint != test.fingerprint
    again = open_dataset(declaration, "train", eurosat, what="again")
    assert again.sample_ids == train.sample_ids


def test_torchvision__is_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    declaration = reader(kind="torchvision", dataset="CIFAR10")
    assert (
        missing_files(declaration, ["test"], tmp_path) == f"the folder {tmp_path / 'set'} is empty"
    )
    (tmp_path / "set" / "readme").write_text("")
    with pytest.raises(DataError, match=r"torchvision cannot open CIFAR10 .* not found"):
        open_dataset(declaration, "test", tmp_path)


def test_torchvision__unknown_name(eurosat: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data set 'CIFAR11'. Did you mean 'CIFAR10'"):
        open_dataset(reader(kind="torchvision", dataset="CIFAR11"), "test", eurosat)
