"""Shards of images with labels or captions; an evaluation takes a shard whole or not at all."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskclip_bench.data.readers import Dataset, forget
from maskclip_bench.errors import DataError

OpenSplit = Callable[..., Dataset]
PutShard = Callable[..., Path]
MakePng = Callable[[int], bytes]


def reds(dataset: Dataset) -> list[int]:
    return [int(np.asarray(dataset.image(i))[0, 0, 0]) for i in range(len(dataset))]


def test_labels(tmp_path: Path, put_shard: PutShard, png: MakePng, open_split: OpenSplit) -> None:
    for shard in (0, 1):
        members = {}
        for i in range(2):
            members[f"s{i}.png"] = png(100 * shard + i)
            members[f"s{i}.cls"] = str((shard + i) % 2).encode()
        put_shard(tmp_path / f"set/test/{shard}.tar", members)
    (tmp_path / "set/classnames.txt").write_text("\ufeffowl\r\nred kite\r\n")
    found = open_split("test", kind="webdataset")
    assert found.need_labels().tolist() == [0, 1, 1, 0]
    assert found.class_names == ["owl", "red kite"]
    assert found.sample_ids[3] == "1.tar/s1"
    assert reds(found) == [0, 1, 100, 101]
    assert not found.left_over


@pytest.mark.parametrize("without", ["train", "test"])
def test_labels__of_a_class_that_one_split_lacks(
    without: str, tmp_path: Path, put_shard: PutShard, png: MakePng, open_split: OpenSplit
) -> None:
    for split in ("train", "test"):
        members = {}
        for label in (0, 1, 2):
            if (split, label) != (without, 2):
                members |= {f"{label}.png": png(label), f"{label}.cls": str(label).encode()}
        put_shard(tmp_path / f"set/{split}/0.tar", members)
    splits = ("train", "test")
    opened = [open_split(split, kind="webdataset", splits=splits) for split in splits]
    assert [dataset.class_names for dataset in opened] == [["0", "1", "2"]] * 2


def test_keys__have_their_folders_and_dots(
    tmp_path: Path, put_shard: PutShard, png: MakePng, open_split: OpenSplit
) -> None:
    put_shard(
        tmp_path / "set/test/0.tar",
        {
            "cat/1.png": png(1), "cat/1.cls": b"0",
            "dog/1.png": png(2), "dog/1.cls": b"1\n",
            "v1.0/a.1.png": png(3), "v1.0/a.1.cls": b"2",
            "v1.0/a.2.png": png(4), "v1.0/a.2.cls": b"3",
        },
    )  # fmt: skip
    found = open_split("test", kind="webdataset")
    assert found.sample_ids == [
        "0.tar/cat/1", "0.tar/dog/1", "0.tar/v1.0/a.1", "0.tar/v1.0/a.2",
    ]  # fmt: skip
    assert found.need_labels().tolist() == [0, 1, 2, 3]
    assert reds(found) == [1, 2, 3, 4]


def test_captions__end_at_line_feeds_only(
    tmp_path: Path, put_shard: PutShard, png: MakePng, open_split: OpenSplit
) -> None:
    put_shard(
        tmp_path / "set/test/0.tar",
        {"a.png": png(1), "a.txt": "An owl\r\n\n one\u2028bird\x0c!\n".encode()},
    )
    found = open_split("test", kind="webdataset")
    assert found.captions == [["An owl", "one\u2028bird\x0c!"]]
    assert found.classes is None and found.labels is None


def test_left_over__texts_without_an_image_and_other_files(
    tmp_path: Path, put_shard: PutShard, png: MakePng, open_split: OpenSplit
) -> None:
    put_shard(
        tmp_path / "set/test/0.tar",
        {"0.gif": png(1), "0.cls": b"1", "2.cls": b"2", "3.heic": b"x", "3.cls": b"0"},
    )
    (tmp_path / "set/test/notes.md").write_text("x")
    found = open_split("test", kind="webdataset")
    assert len(found) == 1
    counts = {why: entry["count"] for why, entry in found.left_over.to_json().items()}
    assert counts == {"no .tar file": 1, "text without an image": 2}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"b.png": b"", "a.cls": b"1"}, r"1 times: image without a text \(b \(files: png\)\)"),
        ({"b.png": b"", "b.jpg": b"", "b.cls": b"1"}, "1 times: two images of one name"),
        ({"b.png": b"", "b.cls": b"-1"}, r"b\.cls: '-1' is no class index"),
        ({"b.png": b"", "b.cls": b"owl"}, r"b\.cls: 'owl' is no class index"),
        ({"b.png": b"", "b.cls": b"1000000000000"}, r"b\.cls: '1000000000000' is no class index"),
        ({"b.png": b"", "b.cls": b"999999"}, "999999 is no class index"),
        ({"b.png": b"", "b.txt": b"\xff"}, r"b\.txt in .*0\.tar is not UTF-8"),
        ({"b.png": b"", "b.txt": b" \n"}, r"1 samples in .* have an empty \.txt, e\.g\. 0\.tar/b"),
        (
            {"a.png": b"", "a.cls": b"1", "b.png": b"", "b.txt": b"x"},
            r"1 of 2 samples in .* have no \.cls \(label\), and 1 no \.txt \(captions\)",
        ),
    ],
)
def test_shard__with_problems(
    members: dict[str, bytes],
    message: str,
    tmp_path: Path,
    put_shard: PutShard,
    open_split: OpenSplit,
) -> None:
    put_shard(tmp_path / "set/test/0.tar", members)
    with pytest.raises(DataError, match=message):
        open_split("test", kind="webdataset")


def test_label__above_the_class_names(
    tmp_path: Path, put_shard: PutShard, png: MakePng, open_split: OpenSplit
) -> None:
    put_shard(tmp_path / "set/test/0.tar", {"a.png": png(1), "a.cls": b"2"})
    (tmp_path / "set/classnames.txt").write_text("owl\njay\n")
    with pytest.raises(
        DataError, match=r"1 labels are no class, e\.g\. 2 of 0\.tar/a; there are 2"
    ):
        open_split("test", kind="webdataset")


def test_shard__cut_off_anywhere_is_refused(
    tmp_path: Path, put_shard: PutShard, png: MakePng, open_split: OpenSplit
) -> None:
    members = {f"{i}.{s}": c for i in range(3) for s, c in (("png", png(i)), ("cls", b"1"))}
    path = put_shard(tmp_path / "set/test/0.tar", members)
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        offsets = [member.offset for member in tar.getmembers()]
    for length in (offsets[2], offsets[2] + 100, offsets[3] + 513, offsets[5]):
        path.write_bytes(content[:length])
        forget()
        with pytest.raises(DataError, match=r"0\.tar is truncated"):
            open_split("test", kind="webdataset")
    path.write_bytes(b"no tar at all" * 100)
    forget()
    with pytest.raises(DataError, match=r"0\.tar is damaged: no tar header at byte 0"):
        open_split("test", kind="webdataset")


def test_shards__in_a_linked_folder(
    tmp_path: Path, put_shard: PutShard, png: MakePng, open_split: OpenSplit
) -> None:
    put_shard(tmp_path / "real/0.tar", {"a.png": png(1), "a.cls": b"0"})
    (tmp_path / "set/test").mkdir(parents=True)
    (tmp_path / "set/test/part").symlink_to(tmp_path / "real")
    assert open_split("test", kind="webdataset").sample_ids == ["part/0.tar/a"]
