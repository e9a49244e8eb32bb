"""COCO annotation files: what is checked, and what is legal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskclip_bench.data.coco import coco_classes, image_names, outside_boxes, read_coco
from maskclip_bench.errors import DataError

IMAGE: dict[str, Any] = {"id": 5, "file_name": "1.jpg", "width": 40, "height": 30}
BOX: dict[str, Any] = {"id": 1, "image_id": 5, "category_id": 9, "bbox": [1, 1, 5, 5]}
OWL: dict[str, Any] = {"id": 9, "name": "owl"}


def write(
    path: Path, *, images: Any = (IMAGE,), annotations: Any = (BOX,), categories: Any = (OWL,)
) -> Path:
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_gaps_no_objects_and_no_annotations_are_legal(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert len(read_coco(write(path))["annotations"]) == 1
    assert read_coco(write(path, annotations=[]))["annotations"] == []
    assert read_coco(write(path, annotations=None))["annotations"] == []
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert image_names(read_coco(path)) == ["1.jpg"]


def test_names__are_paths_below_the_folder(tmp_path: Path) -> None:
    images = [{**IMAGE, "id": i, "file_name": n} for i, n in enumerate(("./1.jpg", "a//b", "0001"))]
    content = read_coco(write(tmp_path / "a.json", images=images, annotations=[]))
    assert image_names(content) == ["1.jpg", "a/b", "0001"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "it needs lists `images` and `categories`"),
        ({"categories": None}, "it needs lists `images` and `categories`"),
        ({"images": {"a": 1}}, "it needs lists `images` and `categories`"),
        ({"annotations": 3}, "is no COCO instances file"),
        ({"annotations": {"a": 1}}, "is no COCO instances file"),
        ({"images": [{"id": 5}]}, r"is no COCO instances file \(KeyError: 'file_name'\)"),
        ({"images": [IMAGE, {**IMAGE, "file_name": "2.jpg"}]}, "images have the same id, e.g. 5"),
        (
            {"images": [IMAGE, {**IMAGE, "id": 6, "file_name": "./1.jpg"}]},
            r"images have the same file name, e\.g\. 1\.jpg",
        ),
        ({"categories": [OWL, {**OWL, "name": "jay"}]}, "categories have the same id, e.g. 9"),
        ({"categories": [OWL, {**OWL, "id": 3}]}, "categories have the same name, e.g. owl"),
        ({"annotations": [BOX, BOX]}, "annotations have the same id, e.g. 1"),
        ({"annotations": [{**BOX, "image_id": 7}]}, "a image_id that the file does not list"),
        ({"annotations": [{**BOX, "category_id": 7}]}, "a category_id that the file does not"),
        ({"categories": [{**OWL, "name": None}]}, "the category 9 has no name"),
        ({"annotations": [{**BOX, "area": -4}]}, "the area of 1 annotations is not a finite"),
        ({"annotations": [{**BOX, "area": "4"}]}, "the area of 1 annotations is not a finite"),
        ({"annotations": [{**BOX, "bbox": [True, 1, 5, 5]}]}, "the bbox of 1 annotations is not"),
        ({"annotations": [{**BOX, "bbox": [1, 2, 3]}]}, "the bbox of 1 annotations is not"),
        ({"annotations": [{**BOX, "bbox": [1, 2, -3, 1]}]}, "the bbox of 1 annotations is not"),
        ({"annotations": [{**BOX, "bbox": [1, 2, float("nan"), 1]}]}, "the bbox of 1 annotations"),
    ],
)
def test_file__with_problems(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_coco(write(tmp_path / "a.json", **changes))


def test_file__absent_or_no_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match="No annotation file"):
        read_coco(path)
    path.write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        read_coco(path)


def test_boxes__outside_of_their_image(tmp_path: Path) -> None:
    places = ([39, 29, 9, 9], [-5, 0, 6, 6], [40, 0, 1, 1], [0, 30, 1, 1], [-5, 0, 5, 5])
    boxes = [{**BOX, "id": i, "bbox": box} for i, box in enumerate(places)]
    left_over = outside_boxes(read_coco(write(tmp_path / "a.json", annotations=boxes)))
    assert left_over.to_json() == {
        "boxes without any part inside their image": {
            "count": 3, "first": ["annotation 2", "annotation 3", "annotation 4"],
        }
    }  # fmt: skip


def test_classes__of_the_first_file(tmp_path: Path) -> None:
    jay = {"id": 2, "name": "jay"}
    train = write(tmp_path / "train.json", categories=[OWL, jay])
    val = write(tmp_path / "val.json", categories=[jay, OWL])
    assert coco_classes([train, val]).index_of == {"9": 0, "2": 1}
    assert coco_classes([val, train]).index_of == {"2": 0, "9": 1}
    write(val, categories=[{"id": 9, "name": "jay"}])
    with pytest.raises(DataError, match=r"val\.json: category 9 is 'jay', and in .* it is 'owl'"):
        coco_classes([train, val])
