"""One directory walk: links, loops, what is no regular file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskclip_bench.data.directory_walk import list_folders, walk_files, walk_images
from maskclip_bench.errors import DataError


def names(folder: Path) -> list[str]:
    return [file.name for file in walk_images(folder).files]


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_order__by_name_folder_by_folder(tmp_path: Path) -> None:
    for name in ("b/1.png", "b/10.png", "b/2.png", "a/x/1.png", "c.png"):
        put(tmp_path / name)
    assert names(tmp_path) == ["a/x/1.png", "b/1.png", "b/10.png", "b/2.png", "c.png"]


def test_links__to_files_and_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "real/1.png")
    (tmp_path / "split").mkdir()
    (tmp_path / "split/linked").symlink_to(tmp_path / "real")
    (tmp_path / "split/again").symlink_to("linked")
    (tmp_path / "split/2.png").symlink_to(tmp_path / "real/1.png")
    assert names(tmp_path / "split") == ["2.png", "again/1.png", "linked/1.png"]
    assert list_folders(tmp_path / "split") == ["again", "linked"]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_links__to_a_folder_around_them_are_left_out(target: str, tmp_path: Path) -> None:
    put(tmp_path / "val/x/1.png")
    (tmp_path / "val/x/loop").symlink_to(target)
    walk = walk_images(tmp_path)
    assert [file.name for file in walk.files] == ["val/x/1.png"]
    assert walk.left_over.to_json() == {
        "links to a folder that contains them": {"count": 1, "first": ["val/x/loop"]}
    }


@pytest.mark.parametrize(("link", "target"), [("1.png", "nowhere"), ("x", "x"), ("y", "nowhere")])
def test_links__that_lead_nowhere_are_errors(link: str, target: str, tmp_path: Path) -> None:
    (tmp_path / link).symlink_to(target)
    with pytest.raises(DataError, match=rf"{link} is a link to {target}, which cannot be reached"):
        walk_images(tmp_path)
    with pytest.raises(DataError, match="cannot be reached"):
        list_folders(tmp_path)


def test_pipes_and_hidden_files__are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.png")
    put(tmp_path / "._2.png")
    put(tmp_path / ".git/3.png")
    (tmp_path / ".dead.png").symlink_to("nowhere")
    walk = walk_images(tmp_path)
    assert walk.files == []
    assert {reason: entry["count"] for reason, entry in walk.left_over.to_json().items()} == {
        "hidden by a name that begins with a dot": 3,
        "pipes, sockets or devices": 1,
    }


def test_wanted__names_alone(tmp_path: Path) -> None:
    put(tmp_path / "0.tar")
    put(tmp_path / "0.json")
    walk = walk_files(
        tmp_path, wanted=lambda name: name.endswith(".tar"), other=lambda name: "no shard"
    )
    assert [file.name for file in walk.files] == ["0.tar"]
    assert walk.left_over.sentence() == "1 no shard (0.json)"


def test_folder__that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot list .*absent \(No such file or directory\)"):
        walk_images(tmp_path / "absent")
    with pytest.raises(DataError, match="Cannot list"):
        list_folders(put(tmp_path / "file"))
