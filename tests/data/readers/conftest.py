"""Small data sets on disk, and readers of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskclip_bench.config import validate
from maskclip_bench.data.readers import Dataset, ReaderDeclaration, forget, open_dataset


@pytest.fixture(autouse=True)
def _no_listing_is_kept() -> None:
    forget()


@pytest.fixture
def put_image() -> Callable[..., Path]:
    """Write a plain image; the suffix gives the format."""

    def put(path: Path, *, size: int = 6, value: int = 100) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (value, 0, 0)).save(path)
        return path

    return put


@pytest.fixture
def put_shard() -> Callable[..., Path]:
    """Write a tar file of named contents."""

    def put(path: Path, members: dict[str, bytes]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return put


@pytest.fixture
def png() -> Callable[[int], bytes]:
    """A plain image as bytes."""

    def make(value: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def open_split(tmp_path: Path) -> Callable[..., Dataset]:
    """Open a split of `tmp_path/set` with the reader that the keyword arguments declare."""

    def open_it(split: str, *, splits: tuple[str, ...] = (), **reader: Any) -> Dataset:
        declaration = validate({"root": "set", **reader}, ReaderDeclaration, where="reader")
        return open_dataset(declaration, split, tmp_path, what="Birds", splits=splits)

    return open_it
