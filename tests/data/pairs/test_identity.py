from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskclip_bench.data.pair_config import SourceConfig
from maskclip_bench.data.pairs.identity import data_identity, describe_difference
from maskclip_bench.data.pairs.loader import open_source
from maskclip_bench.data.shapes import write_shape_shards


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three shards of eight samples each, and a table of four images."""
    write_shape_shards(tmp_path / "shapes", num_samples=24, num_shards=3, size=24)
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    lines = [f"images/{number}.png,caption {number}" for number in range(4)]
    (tmp_path / "table.csv").write_text("\n".join(["image,captions", *lines]) + "\n")
    return tmp_path


def shards(root: Path, path: str = "shapes/*.tar") -> dict[str, Any]:
    return data_identity(open_source(SourceConfig(path=path), data_root=root))


def table(root: Path) -> dict[str, Any]:
    return data_identity(open_source(SourceConfig(kind="csv", path="table.csv"), data_root=root))


def flip(path: Path, position: int = -600) -> None:
    """Change a bit of a file; size and mtime stay."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_identity__the_same_data_elsewhere(root: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other") / "data"
    shutil.copytree(root, other)
    for read in (shards, table):
        assert read(root) == read(other)
        assert describe_difference(read(root), read(other)) == ""


def image_of_shard(root: Path) -> None:
    first = root / "shapes" / "shapes-000000.tar"
    flip(first, 700)  # in the first image's bytes


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard more": (
        lambda root: shutil.copy(
            root / "shapes" / "shapes-000000.tar", root / "shapes" / "shapes-000003.tar"
        ),
        "24 samples then, 32 now; new: shapes/shapes-000003.tar",
    ),
    "a shard less": (
        lambda root: (root / "shapes" / "shapes-000001.tar").unlink(),
        "24 samples then, 16 now; no longer there: shapes/shapes-000001.tar",
    ),
    "one bit": (image_of_shard, "with other content: shapes/shapes-000000.tar"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_difference__shards(root: Path, name: str) -> None:
    change, expected = CHANGES[name]
    before = shards(root)
    change(root)
    assert describe_difference(before, shards(root)) == expected


def test_difference__two_shards_exchanged(root: Path) -> None:
    before = shards(root)
    one, two = (root / "shapes" / f"shapes-00000{number}.tar" for number in (0, 1))
    content = one.read_bytes(), two.read_bytes()
    one.write_bytes(content[1])
    two.write_bytes(content[0])
    found = describe_difference(before, shards(root))
    assert found == "with other content: shapes/shapes-000000.tar, shapes/shapes-000001.tar"


def test_difference__another_order(root: Path) -> None:
    names = [f"shapes/shapes-00000{number}.tar" for number in range(3)]
    forth, back = (shards(root, "{" + ",".join(order) + "}") for order in (names, names[::-1]))
    assert describe_difference(forth, back) == "the same files in another order"


def test_difference__renamed_in_the_same_order_is_none(root: Path) -> None:
    before = shards(root)
    for path in sorted((root / "shapes").glob("*.tar")):
        path.rename(path.with_name(path.name.replace("shapes", "pairs")))
    assert describe_difference(before, shards(root)) == ""


def test_difference__a_missing_shard_that_came_back(root: Path) -> None:
    path = root / "shapes" / "shapes-000002.tar"
    path.rename(root / "away")
    listed = "shapes/shapes-{000000..000002}.tar"
    before = shards(root, listed)
    (root / "away").rename(path)
    found = describe_difference(before, shards(root, listed))
    assert found == "16 samples then, 24 now; new: shapes/shapes-000002.tar"


def test_difference__captions_and_images_of_a_table(root: Path) -> None:
    before = table(root)
    Image.new("RGB", (8, 8), (9, 0, 0)).save(root / "images" / "2.png")
    after = table(root)
    expected = "image files with other content, or other ones"
    assert describe_difference(before, after) == expected
    text = (root / "table.csv").read_text()
    (root / "table.csv").write_text(text.replace("caption 1", "caption 7"))
    assert describe_difference(after, table(root)) == "with other content: table.csv"


def test_difference__an_image_that_is_gone(root: Path) -> None:
    before = table(root)
    (root / "images" / "0.png").unlink()
    assert "image files" in describe_difference(before, table(root))


def test_difference__many_names_are_shortened() -> None:
    then = {"num_samples": 8, "images": "", "files": [[f"{n}.tar", "ab"] for n in range(8)]}
    now = {"num_samples": 8, "images": "", "files": [[f"{n}.tar", "cd"] for n in range(8)]}
    expected = "with other content: 0.tar, 1.tar, 2.tar, 3.tar, 4.tar and 3 more"
    assert describe_difference(then, now) == expected
