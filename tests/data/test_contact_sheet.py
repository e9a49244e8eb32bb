"""A contact sheet shows what a reader gives: labels, captions, masks, boxes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.config import validate
from maskclip_bench.data.contact_sheet import COLUMNS, GAP, TILE, contact_sheet
from maskclip_bench.data.readers import Dataset, ReaderDeclaration, open_dataset
from tests.data.small_sets import image, karpathy, text, voc2007


def opened(data: Path, split: str, **reader: object) -> Dataset:
    declaration = validate(reader, ReaderDeclaration, where="reader")
    return open_dataset(declaration, split, data, what="Set")


def folders(root: Path) -> Dataset:
    for number in range(9):
        image(root / f"set/test/cat{number % 2}/{number}.png", value=200, size=(40, 20))
    return opened(root, "test", kind="image_folder", root="set")


def captions(root: Path) -> Dataset:
    karpathy(root / "set", "list.json", "images")
    return opened(root, "test", kind="karpathy", root="set", file="list.json")


def several(root: Path) -> Dataset:
    voc2007(root)
    return opened(root, "test", kind="voc", root="voc2007")


def masks(root: Path) -> Dataset:
    for name in ("a", "b"):
        image(root / f"set/images/test/{name}.jpg")
        path = root / f"set/annotations/test/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((10, 12), 3, dtype=np.uint8)).save(path)
    return opened(root, "test", kind="ade20k", root="set")


def boxes(root: Path) -> Dataset:
    image(root / "set/test/a.jpg", size=(40, 40), value=255)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 40}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400,
             "iscrowd": 0, "segmentation": [[5, 5, 25, 5, 25, 25]]}
        ],
    }  # fmt: skip
    text(root / "set/annotations/instances_test.json", json.dumps(content))
    return opened(root, "test", kind="coco_instances", root="set")


@pytest.mark.parametrize("make", [folders, captions, several, masks, boxes])
def test_kinds(tmp_path: Path, make: Callable[[Path], Dataset]) -> None:
    dataset = make(tmp_path)
    contact_sheet({"test": dataset, "again": dataset}, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == COLUMNS * (TILE + GAP) + GAP
    assert sheet.shape[0] > 2 * TILE
    first = sheet[26 : 26 + TILE, GAP : GAP + TILE]
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 1


def test_what_cannot_be_read_has_an_empty_tile(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = folders(tmp_path)
    (tmp_path / "set/test/cat0/0.png").write_bytes(b"")
    contact_sheet({"test": dataset}, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert (sheet[27 : 26 + TILE, GAP + 3 : GAP + TILE - 3].mean(axis=(0, 1)) > 240).all()
    assert "cat0/0.png" in caplog.text


def test_boxes_are_drawn(tmp_path: Path) -> None:
    dataset = boxes(tmp_path)
    contact_sheet({"test": dataset}, tmp_path / "sheet.png", rows=1)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)
    assert (pixels == (230, 57, 70)).all(axis=1).any()
