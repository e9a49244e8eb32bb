from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from maskclip_bench import content_hash
from maskclip_bench.data.pairs import pair_index
from maskclip_bench.data.pairs.pair_files import PairFile
from maskclip_bench.data.pairs.pair_index import INDEX_FOLDER, Index, cached_index, file_state
from maskclip_bench.data.pairs.pair_sources import BadSamples
from maskclip_bench.errors import DataError, StorageError


class Builder:
    """Counts how often it is asked for an index."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, 0
        self.file = PairFile(root / "a.tar", "a.tar", 0)
        self.other = root / "sizes.json"

    def __call__(self) -> Index:
        self.calls += 1
        lost = BadSamples()
        lost.add("a.tar", "no image", 2, example="007")
        table = pa.table({"key": [self.file.path.read_text()]})
        return Index(table, [1], lost, dependencies=[self.other])

    def open(self, **settings: Any) -> Index:
        return cached_index([self.file], settings, self, data_root=self.root)


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    monkeypatch.setenv(content_hash.CACHE_VARIABLE, str(tmp_path / "cache"))
    root = tmp_path / "data"
    root.mkdir()
    (root / "a.tar").write_text("first")
    return Builder(root)


def test_index__made_once(builder: Builder) -> None:
    for _ in range(3):
        index = builder.open()
        assert index.table.to_pydict() == {"key": ["first"]}
        assert index.lost.reasons("a.tar") == "2 no image (007)"
    assert builder.calls == 1
    builder.open(other="setting")
    assert builder.calls == 2


@pytest.mark.parametrize("how", ["in place", "replaced"])
@pytest.mark.parametrize("settled", [True, False])
def test_index__content_of_equal_size_and_time(
    builder: Builder, how: str, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if settled:
        monkeypatch.setattr(pair_index, "RECENT_SECONDS", -1.0)
    builder.open()
    path, before = builder.file.path, builder.file.path.stat()
    if how == "replaced":
        (builder.root / "new").write_text("other")
        (builder.root / "new").replace(path)
    else:
        path.write_text("other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert builder.open().table.to_pydict() == {"key": ["other"]}
    folders = [f for f in (builder.root / INDEX_FOLDER).iterdir() if f.is_dir()]
    assert len(folders) == 1  # the old one is not left behind


def test_index__a_file_that_appears_is_noticed(builder: Builder) -> None:
    builder.open()
    builder.other.write_text("{}")
    builder.open()
    assert builder.calls == 2


@pytest.mark.parametrize("name", ["index.arrow", "index.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "gone"])
def test_index__damaged_is_made_again(builder: Builder, name: str, damage: str) -> None:
    builder.open()
    (path,) = (builder.root / INDEX_FOLDER).glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "bit":
        position = content.index(b"first") if name == "index.arrow" else content.index(b"007")
        content[position] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    assert builder.open().table.to_pydict() == {"key": ["first"]}
    assert builder.calls == 2
    builder.open()
    assert builder.calls == 2


def test_index__in_the_cache_folder_where_the_root_cannot_be_written(
    builder: Builder, tmp_path: Path
) -> None:
    (builder.root / INDEX_FOLDER).write_text("a file where the folder should be")
    for _ in range(2):
        assert builder.open().table.num_rows == 1
    assert builder.calls == 1
    assert list((tmp_path / "cache" / pair_index.CACHE_INDEX_FOLDER).glob("*/index.json"))


def test_index__in_memory_where_nothing_can_be_written(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise StorageError("No space left on the device")

    monkeypatch.setattr(pair_index, "exclusive", refuse)
    assert builder.open().table.num_rows == 1
    monkeypatch.undo()
    monkeypatch.setattr(pair_index, "_save_index", refuse)
    builder.calls = 0
    assert builder.open().table.num_rows == 1
    assert builder.calls == 1  # it is not made for each place that refuses


def test_index__no_home(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(pair_index, "cache_folder", no_home)
    assert builder.open().table.num_rows == 1


def test_file_state__of_what_is_no_file(tmp_path: Path) -> None:
    assert file_state(tmp_path / "nothing") == ["missing"]
    os.mkfifo(tmp_path / "pipe")
    assert file_state(tmp_path / "pipe") == ["unreadable"]


def test_file_state__still_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("x")

    def changes(path: Path) -> str:
        raise DataError("it changed while it was read")

    monkeypatch.setattr(pair_index, "file_hash", changes)
    assert file_state(tmp_path / "a") != file_state(tmp_path / "a")


def test_saved__is_readable_json(builder: Builder) -> None:
    builder.open()
    (path,) = (builder.root / INDEX_FOLDER).glob("*/index.json")
    assert set(json.loads(path.read_text())) >= {"files", "dependencies", "sha256", "seal"}
