"""Checks before a dense job: pairs, sizes, values; COCO files against their images."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.data.dense import check_coco, check_segmentation_folder
from maskclip_bench.errors import DataError


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    Image.new("RGB", (40, 30)).save(images / "a.jpg")
    Image.new("L", (40, 30), 1).save(masks / "a.png")
    return images, masks


def test_segmentation__linked_folders_and_every_suffix(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    images, masks = folders
    for folder in folders:
        (tmp_path / "linked" / folder.name).mkdir(parents=True)
        (tmp_path / "linked" / folder.name / "x").symlink_to(folder)
    linked = tmp_path / "linked"
    assert check_segmentation_folder(linked / "images", linked / "masks") == 1
    Image.new("RGB", (40, 30)).save(images / "b.PNG")
    Image.new("L", (40, 30), 1).save(masks / "b.png")
    assert check_segmentation_folder(images, masks) == 2


def test_segmentation__what_the_config_does_not_see_is_said(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    images, masks = folders
    Image.new("RGB", (40, 30)).save(images / "b.JPG")
    with caplog.at_level(logging.WARNING):
        assert check_segmentation_folder(images, masks, image_suffix=".jpg") == 1
    assert "1 images with another suffix than the config's img_suffix (b.JPG)" in caplog.text


@pytest.mark.parametrize(
    ("orientation", "mask_size", "refused"),
    [(1, (40, 30), False), (3, (40, 30), False), (6, (40, 30), False), (6, (30, 40), True)],
)
def test_segmentation__sizes_are_compared_as_stored(
    orientation: int, mask_size: tuple[int, int], refused: bool, folders: tuple[Path, Path]
) -> None:
    images, masks = folders
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.new("RGB", (40, 30)).save(images / "a.jpg", exif=exif)
    Image.new("L", mask_size, 1).save(masks / "a.png")
    if not refused:
        assert check_segmentation_folder(images, masks) == 1
        return
    with pytest.raises(DataError, match=r"a\.png \(30 x 40, image 40 x 30\).*orientation"):
        check_segmentation_folder(images, masks)


def test_segmentation__problems(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    with pytest.raises(DataError, match=r"No folder .*absent of images\. Set MASKCLIP_BENCH_DATA"):
        check_segmentation_folder(images / "absent", masks)
    with pytest.raises(DataError, match=r"images holds no \*\.jpeg"):
        check_segmentation_folder(images, masks, image_suffix=".jpeg")
    Image.fromarray(np.full((30, 40), 7, np.uint8)).save(masks / "a.png")
    with pytest.raises(DataError, match="no mask of 6 classes: it has the value 7"):
        check_segmentation_folder(images, masks, num_classes=6)
    (images / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"Cannot read .*a\.jpg"):
        check_segmentation_folder(images, masks)


@pytest.mark.parametrize("name", ["1.jpg", "0001", "./1.jpg", "a/1.jpg"])
@pytest.mark.parametrize("objects", [0, 1])
def test_coco__names_and_splits_that_are_legal(name: str, objects: int, tmp_path: Path) -> None:
    path = tmp_path / "val" / name
    path.parent.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(path, "JPEG")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    content = {
        "images": [{"id": 1, "file_name": name, "width": 40, "height": 30}],
        "annotations": [box] * objects,
        "categories": [{"id": 1, "name": "x"}],
    }
    annotations = tmp_path / "a.json"
    annotations.write_text(json.dumps(content))
    assert check_coco(annotations, tmp_path / "val") == 1
    content["images"] = [{"id": 1, "file_name": name, "width": 30, "height": 40}]
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"says another size than 1 of 1 .*orientation"):
        check_coco(annotations, tmp_path / "val")
    path.unlink()
    with pytest.raises(DataError, match="names 1 of 1 images that are not in"):
        check_coco(annotations, tmp_path / "val")
    with pytest.raises(DataError, match=r"No folder .* of images, which"):
        check_coco(annotations, tmp_path / "absent")
