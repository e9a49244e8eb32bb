from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskclip_bench.data.readers import Dataset, forget
from maskclip_bench.data.readers import webdataset as module
from maskclip_bench.data.readers.webdataset import FIELD
from maskclip_bench.data.tar_scan import HIDDEN, NO_IMAGE, OTHER, scan_tar
from maskclip_bench.errors import DataError

Open = Callable[..., Dataset]
Put = Callable[..., Path]
Png = Callable[[int], bytes]


@pytest.fixture
def split(tmp_path: Path) -> Path:
    folder = tmp_path / "set" / "test"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def opened(open_split: Open) -> Callable[[], Dataset]:
    return lambda: open_split("test", kind="webdataset")


def labelled(png: Png, labels: dict[str, int]) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for number, (key, label) in enumerate(labels.items()):
        members |= {f"{key}.png": png(number), f"{key}.cls": f"{label}\n".encode()}
    return members


def values(dataset: Dataset) -> list[int]:
    """What `png` drew, image by image."""
    return [np.asarray(dataset.image(index))[0, 0, 0].item() for index in range(len(dataset))]


def test_labels(split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]) -> None:
    put_shard(split / "0.tar", labelled(png, {"a": 2, "b": 0}))
    put_shard(split / "1.tar", labelled(png, {"a": 1}))
    (split.parent / "classnames.txt").write_text("cat\r\ndog\nbird\n\n")
    dataset = opened()
    assert dataset.sample_ids == ["0.tar/a", "0.tar/b", "1.tar/a"]
    assert dataset.need_labels().tolist() == [2, 0, 1]
    assert dataset.class_names == ["cat", "dog", "bird"]
    assert values(dataset) == [0, 1, 0]
    assert dataset.files == [split / "0.tar", split / "1.tar"]


def test_captions__only_line_feeds_end_one(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    texts = [" a cat \na tabby\r\n\n", "one\u2028caption\x0cstill", "\ufeffmarked"]
    members: dict[str, bytes] = {}
    for number, text in enumerate(texts):
        members |= {f"{number}.png": png(number), f"{number}.txt": text.encode()}
    put_shard(split / "0.tar", members)
    expected = [["a cat", "a tabby"], ["one\u2028caption\x0cstill"], ["marked"]]
    assert opened().need_captions() == expected


def test_labels_and_captions__both(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split / "0.tar", {**labelled(png, {"a": 0}), "a.txt": b"a cat", "a.json": b"{}"})
    dataset = opened()
    assert (dataset.need_labels().tolist(), dataset.need_captions()) == ([0], [["a cat"]])


def test_empty_captions_beside_labels__are_no_captions(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split / "0.tar", {**labelled(png, {"a": 0}), "a.txt": b""})
    assert opened().captions is None


@pytest.mark.parametrize(
    "keys",
    [
        ["cat/1", "dog/1", "dog/2"],
        ["v1.0/a.1", "v1.0/a.2"],
        ["photo", "photo.v2"],
        ["a.b.c", "a.b.d"],
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_names_with_folders_and_dots(
    split: Path,
    put_shard: Put,
    png: Png,
    opened: Callable[[], Dataset],
    keys: list[str],
    apart: bool,
) -> None:
    members = labelled(png, {key: number for number, key in enumerate(keys)})
    if apart:  # all images, then all labels
        members = dict(sorted(members.items(), key=lambda item: item[0].endswith("cls")))
    put_shard(split / "0.tar", members)
    dataset = opened()
    found = dict(zip(dataset.sample_ids, dataset.need_labels().tolist(), strict=True))
    assert found == {f"0.tar/{key}": number for number, key in enumerate(keys)}
    assert values(dataset) == dataset.need_labels().tolist()


def test_suffixes_in_any_case(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split / "0.TAR", {"a.PNG": png(7), "a.CLS": b"0"})
    assert values(opened()) == [7]


def test_what_is_left_over_is_counted(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    members = {"._a.png": b"fork", "README": b"", "meta.json": b"{}", **labelled(png, {"a": 0})}
    put_shard(split / "0.tar", {**members, "a.seg.png": png(1)})
    (split / "notes.txt").touch()
    left = opened().left_over.to_json()
    assert left[HIDDEN]["first"] == ["0.tar/._a.png"]
    assert left[OTHER]["first"] == ["0.tar/README", "0.tar/meta.json"]
    assert left[FIELD]["first"] == ["0.tar/a.seg.png"]
    assert left["no .tar file"]["first"] == ["notes.txt"]


def test_texts_without_an_image_are_counted_and_warned_of(
    split: Path,
    put_shard: Put,
    png: Png,
    opened: Callable[[], Dataset],
    caplog: pytest.LogCaptureFixture,
) -> None:
    members = {**labelled(png, {"a": 0}), "b.cls": b"1", "c.heif2": b"x", "c.cls": b"2"}
    put_shard(split / "0.tar", members)
    dataset = opened()
    assert len(dataset) == 1
    assert dataset.left_over.to_json()[NO_IMAGE] == {
        "count": 2,
        "first": ["0.tar/b (files: cls)", "0.tar/c (files: heif2, cls)"],
    }
    assert "2 text without an image (0.tar/b (files: cls)" in caplog.text


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"b.png": b"x"}, "1 times image without a text, e.g. b (files: png)"),
        ({"b.png": b"x", "b.json": b"{}"}, "image without a text, e.g. b (files: png, json)"),
        ({"b.png": b"x", "b.jpg": b"x", "b.cls": b"0"}, "two images of one name"),
        ({"a.2.png": b"x"}, "image without a text, e.g. a.2.png"),
        ({"b.png": b"", "b.cls": b"-1"}, "'-1' is no class index"),
        ({"b.png": b"", "b.cls": b"cat"}, "'cat' is no class index"),
        ({"b.png": b"", "b.cls": b"1.0"}, "'1.0' is no class index"),
        ({"b.png": b"", "b.cls": b""}, "'' is no class index"),
        ({"b.png": b"", "b.cls": b"1000000000000"}, "'1000000000000' is no class index"),
        ({"b.png": b"", "b.cls": b"999999999"}, "999999999 is no class index"),
        ({"b.png": b"", "b.cls": b"\xff"}, "is not UTF-8"),
        ({"b.png": b"", "b.cls": b"1\0"}, "holds a NUL"),
        ({"b.png": b"", "b.cls": b"1" * (2 << 20)}, "so it is no label"),
        ({"b.png": b"", "b.txt": b"a"}, "1 of 3 samples have no .cls"),
    ],
)
def test_irregular__refused_by_name(
    split: Path,
    put_shard: Put,
    png: Png,
    opened: Callable[[], Dataset],
    members: dict[str, bytes],
    words: str,
) -> None:
    put_shard(split / "0.tar", {**labelled(png, {"a": 0, "c": 1}), **members})
    with pytest.raises(DataError) as caught:
        opened()
    assert words in str(caught.value)
    assert str(split) in str(caught.value) or "Birds: .cls files" in str(caught.value)


def test_label_beyond_the_class_names__refused(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split / "0.tar", labelled(png, {"a": 2}))
    (split.parent / "classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match="1 labels are no class"):
        opened()


def test_class_names__an_empty_line_would_move_the_rest(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split / "0.tar", labelled(png, {"a": 0}))
    (split.parent / "classnames.txt").write_text("cat\n\ndog\n")
    with pytest.raises(DataError, match=r"Line 2 of .*classnames\.txt is empty"):
        opened()


@pytest.mark.parametrize("text", [b"", b"\n \r\n"])
def test_image_without_caption__refused(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset], text: bytes
) -> None:
    members = {"a.png": png(0), "a.txt": b"a cat", "b.png": png(1), "b.txt": text}
    put_shard(split / "0.tar", members)
    with pytest.raises(DataError, match=r"1 samples have an empty \.txt, e\.g\. 0\.tar/b"):
        opened()


def test_some_without_captions__refused(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split / "0.tar", {"a.png": png(0), "a.txt": b"a cat"})
    put_shard(split / "1.tar", labelled(png, {"b": 0}))
    with pytest.raises(DataError, match=r"1 of 2 samples have no \.cls"):
        opened()
    put_shard(split / "0.tar", {**labelled(png, {"a": 0}), "a.txt": b"a cat"})
    with pytest.raises(DataError, match=r"1 of 2 samples have no \.txt"):
        opened()


def test_same_name_twice__refused(split: Path, png: Png, opened: Callable[[], Dataset]) -> None:
    def write(names: list[str]) -> None:
        with tarfile.open(split / "0.tar", "w") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                data = b"0" if name.endswith("cls") else png(0)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    write(["a.png", "a.cls", "b.png", "b.cls", "a.png", "a.cls"])
    with pytest.raises(DataError, match=r"name of two samples, e\.g\. a"):
        opened()
    write(["a.png", "a.png", "a.cls"])
    with pytest.raises(DataError, match=r"file that is there twice, e\.g\. a\.png"):
        opened()


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links__refused(split: Path, png: Png, opened: Callable[[], Dataset], kind: bytes) -> None:
    with tarfile.open(split / "0.tar", "w") as tar:
        for name, content in labelled(png, {"a": 0}).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = kind, "a.png"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"link, sparse or special file, e\.g\. b\.png"):
        opened()


def test_every_cut_is_refused(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    path = put_shard(split / "0.tar", labelled(png, {"a": 0, "b": 1}))
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    for cut in range(0, end + 1, 256):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match="is no whole shard"):
            opened()


def test_two_tars_in_one_file_and_garbage__refused(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    path = put_shard(split / "0.tar", labelled(png, {"a": 0}))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match="more data after the end of the archive"):
        opened()
    path.write_bytes(b"<html>" * 1000)
    with pytest.raises(DataError, match="is no whole shard"):
        opened()


def test_empty_shard__refused(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split / "0.tar", labelled(png, {"a": 0}))
    put_shard(split / "1.tar", {})
    with pytest.raises(DataError, match=r"1\.tar holds no sample"):
        opened()


def test_compressed_shard__says_what_to_do(split: Path, opened: Callable[[], Dataset]) -> None:
    with tarfile.open(split / "0.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"compressed \(gzip\)"):
        opened()


def test_missing_shards__refused(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    for number in (0, 1, 3):
        put_shard(split / f"s-{number:03d}.tar", labelled(png, {f"a{number}": 0}))
    with pytest.raises(DataError, match=r"no shard between s-001\.tar and s-003\.tar"):
        opened()
    (split / "s-003.tar").unlink()
    (split / "nshards.txt").write_text("3\n")
    with pytest.raises(DataError, match=r"holds 2 shards, and nshards\.txt says 3"):
        opened()
    (split / "nshards.txt").write_text("2")
    dataset = opened()
    assert len(dataset) == 2 and not dataset.left_over
    forget()
    (split / "sizes.json").write_text(json.dumps({"s-001.tar": 2}))
    with pytest.raises(DataError, match="holds 1 samples, and the file of counts"):
        opened()


def test_copied_shard__would_count_twice(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split / "0.tar", labelled(png, {"a": 0, "b": 1}))
    (split / "0 (1).tar").write_bytes((split / "0.tar").read_bytes())
    with pytest.raises(DataError, match=r"0 \(1\)\.tar is a copy of 0\.tar"):
        opened()
    put_shard(split / "0 (1).tar", {**labelled(png, {"b": 0, "a": 1}), "a.cls": b"0\n"})
    assert len(opened()) == 4  # equal sizes, other content


def test_pipe_in_place_of_a_shard__is_not_opened(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split / "0.tar", labelled(png, {"a": 0}))
    os.mkfifo(split / "pipe.tar")
    assert len(opened()) == 1
    assert "pipes, sockets or devices" in opened().left_over.to_json()


def test_text_cut_after_the_scan__refused(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset], monkeypatch: Any
) -> None:
    path = put_shard(split / "0.tar", labelled(png, {"a": 0}))
    listing = scan_tar(path)
    path.write_bytes(path.read_bytes()[: listing.members[1].offset])
    monkeypatch.setattr(module, "scan_tar", lambda _: listing)
    with pytest.raises(DataError, match=r"a\.cls in .* is cut off"):
        opened()


def test_ids__that_are_no_utf8(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split / "0.tar", labelled(png, {"caf\udce9": 0}))
    assert opened().sample_ids == ["0.tar/caf\\xe9"]


def test_classes__of_all_splits(split: Path, put_shard: Put, png: Png, open_split: Open) -> None:
    put_shard(split / "0.tar", labelled(png, {"a": 0}))
    put_shard(split.parent / "train" / "0.tar", labelled(png, {"a": 0, "b": 4}))
    dataset = open_split("test", kind="webdataset", splits=("train", "test"))
    assert len(dataset.class_names) == 5


@pytest.mark.parametrize("without", ["train", "test"])
def test_classes__of_a_class_that_one_split_lacks(
    without: str, split: Path, put_shard: Put, png: Png, open_split: Open
) -> None:
    names = ("train", "test")
    for name in names:
        labels = {str(label): label for label in range(3) if (name, label) != (without, 2)}
        put_shard(split.parent / name / "0.tar", labelled(png, labels))
    opened = [open_split(name, kind="webdataset", splits=names) for name in names]
    assert [dataset.class_names for dataset in opened] == [["0", "1", "2"]] * 2


def test_shards__in_a_linked_folder(
    split: Path, put_shard: Put, png: Png, opened: Callable[[], Dataset]
) -> None:
    put_shard(split.parent / "elsewhere" / "0.tar", labelled(png, {"a": 0}))
    (split / "part").symlink_to(split.parent / "elsewhere")
    assert opened().sample_ids == ["part/0.tar/a"]
