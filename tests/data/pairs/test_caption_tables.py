from __future__ import annotations

import contextlib
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from maskclip_bench.data.images import decode_crops
from maskclip_bench.data.pair_config import SourceConfig
from maskclip_bench.data.pairs import byte_ranges, caption_tables
from maskclip_bench.data.pairs.loader import PairLoader, open_source
from maskclip_bench.data.pairs.pair_sources import BadSampleError, PairSource
from maskclip_bench.data.shapes import draw_shapes, jpeg_bytes
from maskclip_bench.data.yfcc import archive_and_member, convert_metadata
from maskclip_bench.errors import DataError

MakeLoader = Callable[..., PairLoader]
NUM = 12


def open_table(data_root: Path, **source: Any) -> PairSource:
    return open_source(SourceConfig.model_validate(source), data_root=data_root)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for index in range(NUM):
        image = jpeg_bytes(draw_shapes(index, size=24)[0])
        (tmp_path / f"photos/{index}.jpg").write_bytes(image)
    return tmp_path


@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.tsv", "\t")])
def test_csv__images_and_captions(
    images: Path, make_loader: MakeLoader, name: str, separator: str
) -> None:
    lines = [separator.join(["filepath", "title", "other"])]
    lines += [separator.join([f"{i}.jpg", f'"one, ""two""\nof {i}"', "1"]) for i in range(NUM)]
    (images / name).write_text("\n".join(lines))
    source = {
        "kind": "csv",
        "image_field": "filepath",
        "caption_fields": "title",
        "images_root": "photos",
        "quoting": True,
    }
    opened = open_table(images, path=name, **source)
    assert len(opened) == NUM and opened.shard(3) == name
    pair = opened.read(3)
    assert (pair.key, pair.captions) == ("3.jpg", [['one, "two"\nof 3']])
    assert pair.image == (images / "photos/3.jpg").read_bytes()
    keys = [k for b in make_loader(images, name, **source).epoch(0) for k in b.keys]
    assert sorted(keys) == sorted(f"{i}.jpg" for i in range(NUM))


def test_csv__broken_rows_are_counted(images: Path) -> None:
    (images / "t.csv").write_text("image,captions\n0.jpg,a\n1.jpg,a,too,many\n2.jpg,b\n")
    source = open_table(images, kind="csv", path="t.csv")
    assert len(source) == 2
    assert source.lost.as_dict() == {"t.csv": {"broken row": 1}}


def test_tsv__quotation_marks_swallow_nothing(images: Path) -> None:
    captions = ['"12 inch ruler', "plain", '"Hello" is a song', '6" nail', '""']
    lines = [f"photos/{i}.jpg\t{caption}" for i, caption in enumerate(captions)]
    (images / "t.tsv").write_text("\n".join(["image\tcaptions", *lines]))
    source = open_table(images, kind="csv", path="t.tsv")
    assert [source.read(i).captions for i in range(len(source))] == [[[c]] for c in captions]
    assert source.lost.as_dict() == {}


def test_csv__swallowed_rows_are_counted_and_named(images: Path, make_loader: MakeLoader) -> None:
    (images / "t.csv").write_text(
        'image,captions\nphotos/0.jpg,"open\nphotos/1.jpg,"two\nphotos/2.jpg,c\n'
    )
    source = open_table(images, kind="csv", path="t.csv")
    assert len(source) == 1 and source.lost.as_dict() == {"t.csv": {"broken row": 2}}
    with pytest.raises(DataError, match=r"2 broken row \(line 2: text follows a closing quote"):
        make_loader(images, "t.csv", kind="csv", batch=1)
    (images / "t.csv").write_text('image,captions\nphotos/0.jpg,"open\nphotos/1.jpg,two\n')
    source = open_table(images, kind="csv", path="t.csv", quoting=False)
    assert [source.read(i).captions for i in range(2)] == [[['"open']], [["two"]]]


def test_rows_without_an_image_name_are_counted(images: Path) -> None:
    (images / "t.csv").write_text("image,captions\n,a\nphotos/1.jpg,b\n")
    source = open_table(images, kind="csv", path="t.csv")
    assert (len(source), source.lost.as_dict()) == (1, {"t.csv": {"broken row": 1}})
    assert "row 1 names no image" in source.lost.describe()
    table = pa.table({"image": ["photos/0.jpg", None], "captions": ["a", "b"]})
    pa_parquet.write_table(table, images / "t.parquet")
    source = open_table(images, kind="parquet", path="t.parquet")
    assert source.lost.as_dict() == {"t.parquet": {"broken row": 1}}


def test_image_that_is_a_pipe_or_folder_is_never_opened(images: Path) -> None:
    os.mkfifo(images / "photos" / "pipe.jpg")
    (images / "t.csv").write_text("image,captions\nphotos/pipe.jpg,a\nphotos,b\n")
    source = open_table(images, kind="csv", path="t.csv")
    for index, kind in enumerate(("named pipe", "folder")):
        with pytest.raises(BadSampleError, match=f"no image.*is a {kind}"):
            source.read(index)


def test_image_and_member_of_absurd_size_are_not_read(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (caption_tables, byte_ranges):
        monkeypatch.setattr(module, "MAX_BYTES", 100)
    (images / "t.csv").write_text("image,captions\nphotos/0.jpg,a\n")
    with pytest.raises(BadSampleError, match="has more than 100 bytes"):
        open_table(images, kind="csv", path="t.csv").read(0)


@pytest.mark.parametrize("cut", [0, 4, 100, -1, -9, -200])
def test_damaged_parquet__is_one_sentence(images: Path, cut: int) -> None:
    table = pa.table({"image": [f"{i}" for i in range(500)], "captions": ["a"] * 500})
    path = images / "t.parquet"
    pa_parquet.write_table(table, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as parquet: [^\n]*$"):
        open_table(images, kind="parquet", path="t.parquet")


def test_damaged_parquet__any_byte(images: Path) -> None:
    table = pa.table({"image": [f"{i}" for i in range(50)], "captions": ["a"] * 50})
    path = images / "t.parquet"
    pa_parquet.write_table(table, path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(DataError):
            open_table(images, kind="parquet", path="t.parquet")


def test_column_twice__says_so(images: Path) -> None:
    names = pa.schema([("image", pa.string()), ("captions", pa.string()), ("image", pa.string())])
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, schema=names)
    pa_parquet.write_table(table, images / "t.parquet")
    with pytest.raises(DataError, match="has two columns 'image'"):
        open_table(images, kind="parquet", path="t.parquet")
    (images / "t.csv").write_text("image,captions,image\na,b,c\n")
    with pytest.raises(DataError, match="has 2 columns named 'image'"):
        open_table(images, kind="csv", path="t.csv")


def test_files__tables_archives_and_images(images: Path, yfcc: Path) -> None:
    (images / "t.csv").write_text("image,captions\nphotos/0.jpg,a\n")
    source = open_table(images, kind="csv", path="t.csv")
    assert source.files() == [("t.csv", images / "t.csv")]
    assert source.image_files() == [images / "photos/0.jpg"]
    convert_metadata(yfcc / "meta.pkl", yfcc / "yfcc/pairs.parquet")
    source = open_table(yfcc, **YFCC)
    archives = ["images/01/234.zip", "images/01/235.zip", "images/99/001.zip"]
    assert [name for name, _ in source.files()] == ["yfcc/pairs.parquet", *archives]
    assert source.image_files() == []


def test_parquet__lists_and_fields(images: Path) -> None:
    table = pa.table(
        {
            "image": [f"photos/{i}.jpg" for i in range(NUM)],
            "captions": [[f"a {i}", None, f"b {i}"] for i in range(NUM)],
            "title": [None if i == 2 else f"t {i}" for i in range(NUM)],
        }
    )
    pa_parquet.write_table(table, images / "t-0.parquet")
    pa_parquet.write_table(table.slice(0, 5), images / "t-1.parquet")
    source = open_table(
        images, kind="parquet", path="t-{0..1}.parquet", caption_fields=["captions", "title"]
    )
    assert len(source) == NUM + 5 and list(source.part_sizes) == [NUM + 5]
    assert source.read(2).captions == [["a 2", "", "b 2"], [""]]
    assert source.read(NUM + 1).key == "photos/1.jpg"
    assert source.shard(NUM + 1) == "t-1.parquet"


def test_missing_image_and_table__counted(images: Path, make_loader: MakeLoader) -> None:
    (images / "t.csv").write_text(
        "image,captions\n" + "".join(f"photos/{i}.jpg,a {i}\n" for i in range(NUM + 1))
    )
    loader = make_loader(images, "{t,u}.csv", kind="csv", batch=13, max_bad_fraction=1.0)
    with pytest.raises(DataError, match=r"u.csv: 13 missing shard"):
        make_loader(images, "{t,u}.csv", kind="csv")
    with pytest.raises(DataError, match="Too many broken samples in one batch"):
        next(loader.epoch(0))  # 13 wanted, 12 there
    assert loader.report() == {"t.csv": {"no image": 1}, "u.csv": {"missing shard": 13}}


def test_no_table__says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"None of the tables .* exists: t.csv"):
        open_table(tmp_path, kind="csv", path="t.csv")


def test_unknown_column__suggests(images: Path) -> None:
    (images / "t.csv").write_text("images,captions\na,b\n")
    with pytest.raises(DataError, match=r"no column 'image'. Did you mean 'images'\?"):
        open_table(images, kind="csv", path="t.csv")


def test_not_parquet__says_so(images: Path) -> None:
    (images / "t.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"t.parquet cannot be read as parquet"):
        open_table(images, kind="parquet", path="t.parquet")


def test_wrong_column_type__says_so(images: Path) -> None:
    pa_parquet.write_table(pa.table({"image": [[1.0]], "captions": ["a"]}), images / "t.parquet")
    with pytest.raises(DataError, match=r"Column 'image' of t.parquet holds list<"):
        open_table(images, kind="parquet", path="t.parquet")


YFCC = {
    "kind": "parquet",
    "path": "yfcc/pairs.parquet",
    "images_root": "yfcc",
    "image_field": "member",
    "archive_field": "archive",
    "caption_fields": ["title", "description"],
    "captions": "random_of_fields",
}


@pytest.fixture
def yfcc(tmp_path: Path) -> Path:
    """Three archives (one deflated) of four images each, and their metadata pickle."""
    import pickle

    rows = []
    for number in (1_234_000, 1_235_000, 99_001_000):
        for index in range(number, number + 4):
            archive, member = archive_and_member(index)
            path = tmp_path / "yfcc" / archive
            path.parent.mkdir(parents=True, exist_ok=True)
            method = zipfile.ZIP_DEFLATED if number == 1_235_000 else zipfile.ZIP_STORED
            with zipfile.ZipFile(path, "a", method) as packed:
                packed.writestr(member, jpeg_bytes(draw_shapes(index, size=24)[0]))
            rows.append((index, f"title {index}", f"text {index}" if index % 2 else ""))
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(rows))
    return tmp_path


def test_yfcc__round_trip(yfcc: Path, make_loader: MakeLoader) -> None:
    steps: list[tuple[str, int, int]] = []
    num_rows = convert_metadata(
        yfcc / "meta.pkl",
        yfcc / "yfcc/pairs.parquet",
        progress=lambda *step: steps.append(step),
    )
    assert num_rows == 12 and steps == [("table", 12, 12)]
    source = open_table(yfcc, **YFCC)
    assert len(source) == 12
    for index in (0, 5, 11):
        pair = source.read(index)
        archive, _, member = pair.key.rpartition("/")
        assert source.shard(index) == archive
        with zipfile.ZipFile(yfcc / "yfcc" / archive) as packed:
            assert pair.image == packed.read(member)
    assert source.read(0).captions == [["title 1234000"], [""]]
    keys = [k for b in make_loader(yfcc, **YFCC).epoch(0) for k in b.keys]
    assert len(set(keys)) == 12


def test_yfcc__missing_archive_and_member(yfcc: Path) -> None:
    convert_metadata(yfcc / "meta.pkl", yfcc / "yfcc/pairs.parquet")
    (yfcc / "yfcc/images/01/234.zip").unlink()
    with zipfile.ZipFile(yfcc / "yfcc/images/99/001.zip", "w") as packed:
        packed.writestr("000.jpg", b"no image")
    (yfcc / "yfcc/images/01/235.zip").write_bytes(b"no zip")
    source = open_table(yfcc, **YFCC)
    assert len(source) == 1
    assert source.lost.as_dict() == {
        "images/01/234.zip": {"missing shard": 4},
        "images/01/235.zip": {"broken shard": 4},
        "images/99/001.zip": {"no image": 3},
    }


def test_yfcc__member_that_is_there_twice_and_archive_that_is_a_pipe(yfcc: Path) -> None:
    convert_metadata(yfcc / "meta.pkl", yfcc / "yfcc/pairs.parquet")
    with (
        zipfile.ZipFile(yfcc / "yfcc/images/99/001.zip", "a") as packed,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        packed.writestr("001.jpg", b"another")
    (yfcc / "yfcc/images/01/234.zip").unlink()
    os.mkfifo(yfcc / "yfcc/images/01/234.zip")
    source = open_table(yfcc, **YFCC)
    assert source.lost.as_dict() == {
        "images/01/234.zip": {"broken shard": 4},
        "images/99/001.zip": {"no image": 1},
    }


def test_yfcc__archive_that_comes_back_is_used(yfcc: Path) -> None:
    convert_metadata(yfcc / "meta.pkl", yfcc / "yfcc/pairs.parquet")
    archive = yfcc / "yfcc/images/01/234.zip"
    archive.rename(archive.with_suffix(".away"))
    assert len(open_table(yfcc, **YFCC)) == 8
    archive.with_suffix(".away").rename(archive)
    assert len(open_table(yfcc, **YFCC)) == 12


def test_yfcc__archive_changes_after_indexing(yfcc: Path) -> None:
    convert_metadata(yfcc / "meta.pkl", yfcc / "yfcc/pairs.parquet")
    source = open_table(yfcc, **YFCC)
    deflated = next(i for i in range(12) if source.shard(i) == "images/01/235.zip")
    path = yfcc / "yfcc/images/01/235.zip"
    data = bytearray(path.read_bytes())
    data[45:120] = b"\xff" * 75
    path.write_bytes(bytes(data))
    with pytest.raises(BadSampleError, match="broken image"):
        output = np.empty((8, 8, 3), dtype=np.uint8)
        pair = source.read(deflated)
        decode_crops(pair.image, [output], scales=[(1, 1)], ratio=(1, 1), rng=random.Random(0))
    path.write_bytes(b"short")
    with pytest.raises(BadSampleError, match="no zip member"):
        source.read(deflated + 1)
