"""Images and masks in ADE20K's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from maskclip_bench.data.dense import check_segmentation_folder
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError

OpenSplit = Callable[..., Dataset]


@pytest.fixture
def scenes(tmp_path: Path, put_image: Callable[..., Path]) -> Path:
    """Four images of different suffixes, each with its mask."""
    root = tmp_path / "set"
    (root / "annotations/val").mkdir(parents=True)
    for index, suffix in enumerate((".jpg", ".JPG", ".jpeg", ".png")):
        put_image(root / f"images/val/{index}{suffix}")
        Image.new("L", (6, 6), 1).save(root / f"annotations/val/{index}.png")
    return root


def test_pairs__every_suffix_in_all_protocols(scenes: Path, open_split: OpenSplit) -> None:
    (scenes / "classes.json").write_text(
        json.dumps([{"name": "sky", "kind": "stuff"}, {"name": "owl", "kind": "thing"}])
    )
    found = open_split("val", kind="ade20k", classes="classes.json")
    assert found.sample_ids == ["0.jpg", "1.JPG", "2.jpeg", "3.png"]
    assert [mask.name for mask in found.annotations] == ["0.png", "1.png", "2.png", "3.png"]
    assert found.class_names == ["sky", "owl"]
    assert found.classes is not None and found.classes.kinds == ("stuff", "thing")
    folders = (scenes / "images/val", scenes / "annotations/val")
    assert check_segmentation_folder(*folders) == len(found)


def test_classes__a_list_in_text(scenes: Path, open_split: OpenSplit) -> None:
    for number, lines in enumerate(("1 sky\n2 barn owl\n", "sky\nowl\n")):
        (scenes / f"{number}.txt").write_text(lines)
        found = open_split("val", kind="ade20k", classes=f"{number}.txt")
        assert found.class_names == ["sky", "barn owl" if number == 0 else "owl"]
    for number, lines in enumerate(("sky\nbarn owl\n", "0 sky\n1 owl\n", "2 sky\n1 owl\n"), 2):
        (scenes / f"{number}.txt").write_text(lines)
        with pytest.raises(DataError, match=r"Write `value name` a line with the values 1, 2, 3"):
            open_split("val", kind="ade20k", classes=f"{number}.txt")


def test_pairs__equal_names_in_two_folders(scenes: Path, open_split: OpenSplit) -> None:
    for city in ("aachen", "bochum"):
        for kind, name in (("images", "1.png"), ("annotations", "1.png")):
            target = scenes / kind / "test" / city / name
            target.parent.mkdir(parents=True)
            Image.new("L", (6, 6), 1).save(target)
    found = open_split("test", kind="ade20k")
    assert found.sample_ids == ["aachen/1.png", "bochum/1.png"]


def test_mask__that_is_absent_or_shared(
    scenes: Path, put_image: Callable[..., Path], open_split: OpenSplit
) -> None:
    put_image(scenes / "images/val/3.gif")
    with pytest.raises(DataError, match=r"1 masks .* belong to several .* 3\.gif, 3\.png"):
        open_split("val", kind="ade20k")
    (scenes / "annotations/val/0.png").unlink()
    with pytest.raises(DataError, match=r"1 of 5 images .* have no mask in .*, e\.g\. 0\.jpg"):
        open_split("val", kind="ade20k")


def test_left_over__masks_without_an_image(scenes: Path, open_split: OpenSplit) -> None:
    (scenes / "images/val/0.jpg").unlink()
    found = open_split("val", kind="ade20k")
    assert found.left_over.to_json() == {"masks without an image": {"count": 1, "first": ["0.png"]}}


def test_fingerprint__follows_the_masks(scenes: Path, open_split: OpenSplit) -> None:
    from maskclip_bench.data.readers import forget

    first = open_split("val", kind="ade20k").fingerprint
    Image.new("L", (6, 6), 2).save(scenes / "annotations/val/0.png")
    forget()
    assert open_split("val", kind="ade20k").fingerprint != first
