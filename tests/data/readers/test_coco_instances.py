"""Images and objects in COCO's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskclip_bench.data.class_table import same_classes
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError

OpenSplit = Callable[..., Dataset]
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]


@pytest.fixture
def write(tmp_path: Path, put_image: Callable[..., Path]) -> Callable[..., Path]:
    """Write a split: its images, and its annotation file."""

    def write_it(split: str, *, categories: Any = None, boxes: Any = (), **more: Any) -> Path:
        images = [
            {"id": index, "file_name": f"{index}.png", "width": 6, "height": 6}
            for index in (7, 1000)
        ]
        for image in images:
            put_image(tmp_path / "set" / split / str(image["file_name"]))
        annotations = [
            {"id": i, "image_id": 7, "category_id": 9, "bbox": box} for i, box in enumerate(boxes)
        ]
        content = {
            "images": images,
            "annotations": annotations,
            "categories": categories or CATEGORIES,
            **more,
        }
        path = tmp_path / "set/annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
        return path

    return write_it


def test_split(write: Callable[..., Path], open_split: OpenSplit) -> None:
    path = write("val", boxes=[[1, 1, 2, 2]])
    found = open_split("val", kind="coco_instances")
    assert found.sample_ids == ["7.png", "1000.png"]
    assert found.class_names == ["cat", "dog"]
    assert found.annotations == [path]
    assert found.image(0).size == (6, 6)
    assert not found.left_over


@pytest.mark.parametrize("categories", [CATEGORIES[::-1], CATEGORIES[1:]])
def test_categories__have_the_training_files_labels(
    categories: Any, write: Callable[..., Path], open_split: OpenSplit
) -> None:
    write("train")
    write("val", categories=categories)
    splits = ("train", "val")
    train, val = (open_split(s, kind="coco_instances", splits=splits) for s in splits)
    assert same_classes(train, val).names == ("cat", "dog")
    assert val.classes is not None and val.classes.index_of == {"3": 0, "9": 1}


def test_categories__that_differ(write: Callable[..., Path], open_split: OpenSplit) -> None:
    write("train")
    write("val", categories=[{"id": 3, "name": "dog"}, {"id": 9, "name": "cat"}])
    with pytest.raises(DataError, match=r"category 3 is 'dog', and in .* it is 'cat'"):
        open_split("val", kind="coco_instances", splits=("train", "val"))
    write("val", categories=[*CATEGORIES, {"id": 10, "name": "owl"}])
    with pytest.raises(DataError, match=r"category 10 is 'owl', and in .* it does not exist"):
        open_split("val", kind="coco_instances", splits=("train", "val"))


def test_split__without_objects_or_annotations(
    write: Callable[..., Path], open_split: OpenSplit
) -> None:
    write("val")
    assert len(open_split("val", kind="coco_instances")) == 2
    write("test", annotations=None)
    assert len(open_split("test", kind="coco_instances")) == 2


def test_images__absent_or_not_listed(
    tmp_path: Path,
    write: Callable[..., Path],
    put_image: Callable[..., Path],
    open_split: OpenSplit,
) -> None:
    write("val", boxes=[[1, 1, 2, 2], [6, 0, 3, 3], [-4, 0, 4, 9]])
    put_image(tmp_path / "set/val/8.png")
    found = open_split("val", kind="coco_instances")
    assert found.left_over.to_json() == {
        "images that the annotation file does not name": {"count": 1, "first": ["8.png"]},
        "boxes without any part inside their image": {
            "count": 2, "first": ["annotation 1", "annotation 2"],
        },
    }  # fmt: skip
    from maskclip_bench.data.readers import forget

    forget()
    (tmp_path / "set/val/7.png").unlink()
    with pytest.raises(DataError, match=r"names 1 of 2 images that are not in .*, e\.g\. 7\.png"):
        open_split("val", kind="coco_instances")
