from __future__ import annotations

import gzip
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset

from maskclip_bench.data.pair_config import SourceConfig
from maskclip_bench.data.pairs import pair_index
from maskclip_bench.data.pairs import shards as shards_module
from maskclip_bench.data.pairs.loader import PairLoader, open_source
from maskclip_bench.data.pairs.pair_index import INDEX_FOLDER
from maskclip_bench.data.pairs.pair_sources import BadSampleError, PairSource
from maskclip_bench.data.shapes import draw_shapes, jpeg_bytes
from maskclip_bench.errors import ConfigError, DataError, StorageError

MakeLoader = Callable[..., PairLoader]


def open_tar(data_root: Path, path: str = "a.tar", **source: Any) -> PairSource:
    config = SourceConfig.model_validate({"path": path, **source})
    return open_source(config, data_root=data_root)


def write_tar(
    path: Path, members: dict[str, bytes], *, tar_format: int = tarfile.GNU_FORMAT
) -> None:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sample(index: int, captions: Any = None) -> dict[str, bytes]:
    image, drawn = draw_shapes(index, size=24)
    about = {"captions": drawn if captions is None else captions}
    return {f"{index:03d}.jpg": jpeg_bytes(image), f"{index:03d}.json": json.dumps(about).encode()}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_samples__equal_webdatasets_own_reading(shards: Path) -> None:
    source = open_tar(shards, "shapes/shapes-{000000..000003}.tar")
    ours = [source.read(index) for index in range(len(source))]
    urls = sorted(map(str, (shards / "shapes").glob("*.tar")))
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [pair.key for pair in ours] == [row["__key__"] for row in theirs]
    assert [pair.image for pair in ours] == [row["jpg"] for row in theirs]
    assert [pair.captions[0] for pair in ours] == [
        json.loads(row["json"])["captions"] for row in theirs
    ]


def test_txt_captions__are_read(shards: Path) -> None:
    pair = open_tar(shards, "shapes/shapes-000000.tar", caption_fields="txt").read(0)
    assert pair.captions == [[draw_shapes(0, size=24)[1][0]]]


def test_index__is_cached_and_follows_the_files(shards: Path) -> None:
    pattern = "shapes/*.tar"
    assert len(open_tar(shards, pattern)) == 48
    folders = set((shards / INDEX_FOLDER).glob("[0-9a-f]*"))
    assert len(folders) == 1
    assert len(open_tar(shards, pattern)) == 48
    assert set((shards / INDEX_FOLDER).glob("[0-9a-f]*")) == folders
    write_tar(shards / "shapes/shapes-000000.tar", sample(0))
    assert len(open_tar(shards, pattern)) == 37


@pytest.mark.slow
def test_index__by_several_processes(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = open_tar(shards, "shapes/*.tar")
    monkeypatch.setattr(shards_module, "SHARDS_FOR_PROCESSES", 2)
    monkeypatch.setattr(shards_module, "default_num_threads", lambda: 2)
    together = open_tar(shards, "{shapes,shapes}/shapes-000000.tar::shapes/shapes-000001.tar")
    assert list(together.part_sizes) == [24, 12]
    assert [together.read(index) for index in range(12)] == [alone.read(i) for i in range(12)]


def test_index__damaged_is_made_anew(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_tar(shards, "shapes/*.tar")
    for name in ("index.arrow", "index.json"):
        (file,) = (shards / INDEX_FOLDER).glob(f"*/{name}")
        file.write_bytes(b"{damaged")
        assert len(open_tar(shards, "shapes/*.tar")) == 48
        assert "is damaged" in caplog.text
        caplog.clear()
        assert len(open_tar(shards, "shapes/*.tar")) == 48
        assert "is damaged" not in caplog.text


def test_index__in_memory_where_the_root_is_read_only(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shards / INDEX_FOLDER).write_text("a file where the folder should be")

    def refuse(path: Path, **_: Any) -> None:
        raise StorageError("read-only")

    monkeypatch.setattr(pair_index, "exclusive", refuse)
    assert len(open_tar(shards, "shapes/*.tar")) == 48


def test_truncated_tar__keeps_what_is_whole(
    shards: Path, make_loader: MakeLoader, caplog: pytest.LogCaptureFixture
) -> None:
    path = shards / "shapes/shapes-000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        loader = make_loader(shards, max_bad_fraction=0.5)
    lost = loader.report()["shapes/shapes-000001.tar"]["truncated shard"]
    assert 1 <= lost < 12 and loader.num_samples == 48 - lost
    assert f"shapes-000001.tar: samples left out: {lost} truncated shard" in caplog.text
    assert len([k for b in loader.epoch(0) for k in b.keys]) == loader.steps_per_epoch * 4


def test_truncated_tar__counts_by_sizes_json(shards: Path) -> None:
    path = shards / "shapes/shapes-000001.tar"
    path.write_bytes(path.read_bytes()[:4000])
    (shards / "shapes/shards.json").write_text(
        json.dumps({"num_samples": 1, "shards": {"shapes-000001.tar": 112}})
    )
    source = open_tar(shards, "shapes/*.tar")
    found = len(source) - 36
    assert source.lost.counts["shapes/shapes-000001.tar"]["truncated shard"] == 112 - found


def test_garbage_and_empty_tars__are_broken_shards(shards: Path) -> None:
    (shards / "shapes/shapes-000000.tar").write_bytes(b"not a tar at all" * 100)
    (shards / "shapes/shapes-000001.tar").write_bytes(b"")
    source = open_tar(shards, "shapes/shapes-{000000..000003}.tar")
    assert source.lost.as_dict() == {
        "shapes/shapes-000000.tar": {"broken shard": 12},
        "shapes/shapes-000001.tar": {"truncated shard": 12},
    }


def test_compressed_tar__says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(DataError, match=r"compressed \(gzip\).*unpack it"):
        open_tar(tmp_path)


def test_no_match__says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No file matches 'x/\*\.tar'"):
        open_tar(tmp_path, "x/*.tar")


def test_unbalanced_braces__say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"braces that do not match: 'a-\{0\.\.3\.tar'"):
        open_tar(tmp_path, "a-{0..3.tar")


def test_incomplete_samples__counted(tmp_path: Path) -> None:
    members = {**sample(0), **sample(1), **sample(2)}
    del members["001.json"], members["002.jpg"]
    write_tar(tmp_path / "a.tar", members)
    source = open_tar(tmp_path)
    assert len(source) == 1
    assert source.lost.as_dict() == {"a.tar": {"no caption": 1, "no image": 1}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{broken", "broken caption"),
        (b'{"captions": 3}', "broken caption"),
        (b'{"captions": ["a", 3]}', "broken caption"),
        (b'{"text": "a"}', "no caption"),
        (b"[1]", "broken caption"),
    ],
)
def test_bad_captions__named(tmp_path: Path, text: bytes, reason: str) -> None:
    write_tar(tmp_path / "a.tar", {**sample(0), "000.json": text})
    with pytest.raises(BadSampleError, match=reason):
        open_tar(tmp_path).read(0)


def test_empty_caption__counted(tmp_path: Path, make_loader: MakeLoader) -> None:
    members = sample(0, captions=["", " "])
    for index in range(1, 10):
        members |= sample(index)
    write_tar(tmp_path / "a.tar", members)
    loader = make_loader(tmp_path, "a.tar", batch=10, max_bad_fraction=0.1)
    (batch,) = make_loader(tmp_path, "a.tar", batch=9, max_bad_fraction=0.2).epoch(0)
    assert "000" not in batch.keys
    with pytest.raises(DataError, match="1 empty caption"):
        next(loader.epoch(0))


@pytest.mark.parametrize("order", [("json", "jpg", "mask"), ("jpg", "mask", "json")])
def test_members__in_any_order(tmp_path: Path, order: tuple[str, ...]) -> None:
    parts = {**sample(0), "000.mask": b"x" * 10_000}
    write_tar(tmp_path / "a.tar", {f"000.{suffix}": parts[f"000.{suffix}"] for suffix in order})
    pair = open_tar(tmp_path).read(0)
    assert pair.image == parts["000.jpg"]
    assert pair.captions == [json.loads(parts["000.json"])["captions"]]


def test_several_fields__kept_apart(tmp_path: Path) -> None:
    about = json.dumps({"title": "t", "description": None}).encode()
    write_tar(tmp_path / "a.tar", {**sample(0), "000.json": about})
    source = open_tar(tmp_path, caption_fields=["title", "description"])
    assert source.read(0).captions == [["t"], [""]]


def test_names_with_dots_and_folders(tmp_path: Path) -> None:
    parts = list(sample(0).values()), list(sample(1).values())
    names = ("v1.0/a.1", "v1.0/a.2"), ("cat/1", "dog/1")
    for pair in names:
        members = {
            f"{name}.{suffix}": data
            for name, files in zip(pair, parts, strict=True)
            for suffix, data in zip(("jpg", "json"), files, strict=True)
        }
        write_tar(tmp_path / "a.tar", members)
        source = open_tar(tmp_path)
        read = [source.read(index) for index in range(len(source))]
        assert [found.key for found in read] == list(pair)
        assert [found.image for found in read] == [part[0] for part in parts]
        assert source.lost.as_dict() == {}


def test_irregular_shard__counted_by_name(
    tmp_path: Path, make_loader: MakeLoader, caplog: pytest.LogCaptureFixture
) -> None:
    image, about = sample(0).values()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in [
            ("._0.jpg", b"fork"),
            ("README", b"notes"),
            *[
                (f"{i}.{suffix}", d)
                for i in range(4)
                for suffix, d in (("jpg", image), ("json", about))
            ],
            ("two.jpg", image),
            ("two.png", image),
            ("two.json", about),
            ("twice.jpg", image),
            ("twice.jpg", image),
            ("twice.json", about),
            ("0.jpg", image),
            ("0.json", about),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "0.jpg"
        tar.addfile(link)
    loader = make_loader(tmp_path, "a.tar", batch=1, max_bad_fraction=0.5)
    assert loader.num_samples == 5
    assert loader.report() == {
        "a.tar": {
            "link or special file": 1,
            "two images of one name": 1,
            "name that is there twice": 1,
        }
    }
    assert "1 link or special file (link.jpg (hard link))" in caplog.text
    assert "1 two images of one name (two (files: jpg, png, json))" in caplog.text
    assert "1 name of two samples (0)" in caplog.text
    assert "1 hidden file (._0.jpg), 1 file that belongs to no sample (README)" in caplog.text


def test_two_tars_put_together__counted(shards: Path) -> None:
    path = shards / "shapes/shapes-000001.tar"
    path.write_bytes(path.read_bytes() + path.read_bytes())
    (shards / "shapes/sizes.json").write_text(json.dumps({"shapes-000001.tar": 24}))
    source = open_tar(shards, "shapes/*.tar")
    assert source.lost.as_dict() == {
        "shapes/shapes-000001.tar": {"data after the end of the shard": 12}
    }
    assert "were two tars put together?" in source.lost.describe()


def test_pipe_and_folder_in_place_of_a_shard(shards: Path) -> None:
    os.mkfifo(shards / "shapes/shapes-000004.tar")
    (shards / "shapes/shapes-000005.tar").mkdir()
    source = open_tar(shards, "shapes/*.tar")
    assert source.lost.as_dict() == {
        "shapes/shapes-000004.tar": {"broken shard": 12},
        "shapes/shapes-000005.tar": {"broken shard": 12},
    }
    assert "is a named pipe" in source.lost.describe()


def test_shard_cut_after_indexing__is_no_shorter_caption(shards: Path) -> None:
    source = open_tar(shards, "shapes/shapes-000000.tar", caption_fields="txt")
    path = shards / "shapes/shapes-000000.tar"
    *_, text_at, _ = (column.item(0) for column in source._ranges)  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[: text_at + 3])
    with pytest.raises(BadSampleError, match="cut off since it was indexed"):
        source.read(0)
    path.unlink()
    source._reader.close()  # type: ignore[attr-defined]
    with pytest.raises(BadSampleError, match="missing shard"):
        source.read(0)


@pytest.mark.parametrize("text", [b'{"captions": "\\ud800"}', b"[" * 100_000])
def test_captions_that_cannot_be_used__are_counted_not_raised(tmp_path: Path, text: bytes) -> None:
    write_tar(tmp_path / "a.tar", {**sample(0), "000.json": text})
    with pytest.raises(BadSampleError, match="broken caption"):
        open_tar(tmp_path).read(0)


def test_txt_captions__byte_order_mark_and_other_encodings(tmp_path: Path) -> None:
    members = {**sample(0), "000.txt": b"\xef\xbb\xbfa caf\xc3\xa9\n"}
    write_tar(tmp_path / "a.tar", {**members, **sample(1), "001.txt": b"caf\xe9"})
    source = open_tar(tmp_path, caption_fields="txt")
    assert source.read(0).captions == [["a café"]]
    with pytest.raises(BadSampleError, match="broken caption"):
        source.read(1)
