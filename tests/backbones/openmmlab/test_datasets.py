"""Class lists read from the data, and what is said of data that is not as a config expects it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskclip_bench.backbones.openmmlab.datasets import read_categories, read_classes
from maskclip_bench.data.dense import check_coco, check_segmentation_folder
from maskclip_bench.errors import DataError


def test_classes__with_and_without_colours(tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    file.write_text(json.dumps([{"name": "sky", "color": [0, 0, 9]}, {"name": "car"}]))
    assert read_classes(tmp_path, num_classes=2) == (("sky", "car"), None)
    file.write_text(json.dumps({"classes": [{"name": "sky", "color": [0, 0, 9]}]}))
    assert read_classes(tmp_path) == (("sky",), [[0, 0, 9]])


def test_classes__errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No file .*classes\.json.*MASKCLIP_BENCH_DATA"):
        read_classes(tmp_path)
    file = tmp_path / "classes.json"
    file.write_text("[")
    with pytest.raises(DataError, match=r"classes\.json is not valid JSON"):
        read_classes(tmp_path)
    file.write_text(json.dumps([{"label": "sky"}]))
    with pytest.raises(DataError, match="should be a list of"):
        read_classes(tmp_path)
    file.write_text(json.dumps([{"name": "sky"}]))
    with pytest.raises(DataError, match="has 1 classes, and the config is written for 150"):
        read_classes(tmp_path, num_classes=150)


def test_categories__errors(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": []}))
    with pytest.raises(DataError, match="is no COCO annotation file: it has no `categories`"):
        read_categories(file)
    file.write_text(json.dumps({"categories": [{"name": "car"}]}))
    assert read_categories(file, num_classes=1) == ["car"]
    with pytest.raises(DataError, match="has 1 classes, and the config is written for 80"):
        read_categories(file, num_classes=80)


def test_segmentation_folder__without_images(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"images holds no image. Unpack the data set again"):
        check_segmentation_folder(tmp_path / "images", tmp_path / "masks")


def test_coco__without_its_folder_of_images(instances: Path) -> None:
    annotations = instances / "annotations" / "instances_val.json"
    with pytest.raises(DataError, match=r"No folder .*absent of images, which .* describes\. Set"):
        check_coco(annotations, instances / "absent")
    assert check_coco(annotations, instances / "val") == 4
