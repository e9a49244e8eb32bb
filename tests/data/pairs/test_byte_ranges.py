from __future__ import annotations

import os
import pickle
import resource
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskclip_bench.data.pairs import byte_ranges
from maskclip_bench.data.pairs.byte_ranges import FileReader, inflate
from maskclip_bench.data.pairs.pair_sources import BadSampleError
from maskclip_bench.errors import DataError


@pytest.fixture
def reader() -> Iterator[FileReader]:
    made = FileReader()
    yield made
    made.close()


def files(folder: Path, number: int) -> list[Path]:
    paths = [folder / str(index) for index in range(number)]
    for index, path in enumerate(paths):
        path.write_bytes(b"%03d" % index)
    return paths


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def test_read__ranges_and_ends(tmp_path: Path, reader: FileReader) -> None:
    (path,) = files(tmp_path, 1)
    assert [reader.read(path, at, size) for at, size in ((0, 2), (1, 9), (5, 1))] == [
        b"00",
        b"00",
        b"",
    ]


def test_read__keeps_few_files_open(
    tmp_path: Path, reader: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_ranges, "MAX_OPEN_FILES", 3)
    paths = files(tmp_path, 8)
    for _ in range(2):
        assert [reader.read(path, 0, 3) for path in paths] == [b"%03d" % i for i in range(8)]
    assert len(reader._descriptors) == 3


def test_read__few_open_files_allowed(tmp_path: Path, reader: FileReader) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1  # noqa: PTH208
    paths = files(tmp_path, 20)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, hard))
    try:
        assert [reader.read(path, 0, 3) for path in paths] == [b"%03d" % i for i in range(20)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_read__pipes_and_missing_files(tmp_path: Path, reader: FileReader) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="named pipe"):
        reader.read(tmp_path / "pipe", 0, 1)
    with pytest.raises(DataError, match="There is no file"):
        reader.read(tmp_path / "nothing", 0, 1)


def test_sizes_are_bounded(tmp_path: Path, reader: FileReader) -> None:
    (path,) = files(tmp_path, 1)
    with pytest.raises(BadSampleError, match="268,435,456 are allowed"):
        reader.read(path, 0, 1 << 40)
    with pytest.raises(BadSampleError, match="268,435,456 are allowed"):
        inflate(b"", size=1 << 40)
    assert len(inflate(deflate(bytes(1 << 20)), size=100)) == 100
    assert len(inflate(deflate(bytes(1 << 20)), size=0)) <= 1


def test_inflate__whole_and_broken() -> None:
    assert inflate(deflate(b"image" * 99), size=495) == b"image" * 99
    with pytest.raises(BadSampleError, match="broken zip data"):
        inflate(b"\xff" * 9, size=9)


def test_pickled__without_open_files(tmp_path: Path, reader: FileReader) -> None:
    (path,) = files(tmp_path, 1)
    reader.read(path, 0, 1)
    other = pickle.loads(pickle.dumps(reader))
    assert not other._descriptors and other.read(path, 0, 3) == b"000"
    other.close()
