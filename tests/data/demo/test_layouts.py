from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from maskclip_bench.data.demo.atlas import load_atlas
from maskclip_bench.data.demo.layouts import (
    SPLITS,
    DemoSizes,
    MadePiece,
    Piece,
    make_piece,
    num_scenes,
    pieces,
    vendors_of,
    write_file,
)


@pytest.mark.parametrize("layout", ["pretrain", "objects", "scenes", "instances"])
def test_pieces__cover_every_scene_once(layout: str, sizes: DemoSizes) -> None:
    made = list(pieces(sizes, layout, most=4))
    for split in SPLITS[layout]:
        scenes = [n for p in made if p.split == split for n in range(p.start, p.stop)]
        assert scenes == list(range(num_scenes(sizes, layout, split)))


def test_num_scenes__objects_are_per_class(sizes: DemoSizes) -> None:
    assert num_scenes(sizes, "objects", "train") == 6 * len(load_atlas().classes)
    assert num_scenes(sizes, "captions", "test") == 12


def test_vendors__held_out_ones_only_in_ood() -> None:
    atlas = load_atlas()
    assert vendors_of(atlas, "val_ood") == atlas.held_out_vendors
    assert not set(vendors_of(atlas, "train")) & set(atlas.held_out_vendors)


def test_make_piece__does_not_depend_on_the_pieces(tmp_path: Path, sizes: DemoSizes) -> None:
    def made(folder: str, parts: list[tuple[int, int]]) -> dict[str, tuple[int, str]]:
        files: dict[str, tuple[int, str]] = {}
        for start, stop in parts:
            piece = Piece("scenes", "training", start, stop)
            files |= make_piece(piece, tmp_path / folder, sizes, seed=0).files
        return files

    whole, parts = made("whole", [(0, 4)]), made("parts", [(2, 4), (0, 2)])
    assert whole == parts and len(whole) == 8
    for name, (size, digest) in whole.items():
        content = (tmp_path / "parts" / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)


def test_write__is_remembered(tmp_path: Path) -> None:
    piece = MadePiece(Piece("scenes", "training", 0, 1))
    piece.write(tmp_path, "a/b.txt", b"content")
    assert piece.files == {"a/b.txt": write_file(tmp_path, "a/b.txt", b"content")}


def test_world__common_files_name_every_image(world: Path) -> None:
    for path in (world / "instances" / "annotations").glob("*.json"):
        split = path.stem.removeprefix("instances_")
        names = {image["file_name"] for image in json.loads(path.read_text())["images"]}
        assert names == {file.name for file in (world / "instances" / split).iterdir()}
