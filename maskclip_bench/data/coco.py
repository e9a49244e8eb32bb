"""COCO annotation files: read once, checked, and their categories as one class table.

Test splits may have no objects and no `annotations` at all (test-dev). Ids may have gaps. Two
categories of two files are one class if id and name are equal; their order in a file is free.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.left_over import LeftOver, examples, shown
from maskclip_bench.data.text_files import read_text
from maskclip_bench.errors import DataError

OUTSIDE = "boxes without any part inside their image"


def read_coco(path: Path) -> dict[str, Any]:
    """A COCO file: `images`, `categories` and `annotations` (empty where the file has none).

    Raises:
        DataError: It is missing or broken, an id occurs twice or is not known, a box is no box.
    """
    if not path.exists():
        raise DataError(
            f"No annotation file {path}. Set MASKCLIP_BENCH_DATA (or the config's data_root) to "
            "the folder of the data."
        )
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}). Download it again.") from None
    if not isinstance(content, dict) or any(
        not isinstance(content.get(key), list) or not content[key]
        for key in ("images", "categories")
    ):
        raise DataError(
            f"{path} is no COCO instances file: it needs lists `images` and `categories` that are "
            "not empty, and `annotations`."
        )
    content.setdefault("annotations", [])
    try:
        _check(content, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no COCO instances file ({type(error).__name__}: {error}). Images need `id` "
            "and `file_name`, categories `id` and `name`, annotations `image_id`, `category_id` "
            "and `bbox`. Download it again."
        ) from None
    return content


def _check(content: dict[str, Any], path: Path) -> None:
    images = [image["id"] for image in content["images"]]
    categories = [category["id"] for category in content["categories"]]
    names = [category["name"] for category in content["categories"]]
    nameless = [key for key, name in zip(categories, names, strict=True) if not _is_word(name)]
    if nameless:
        raise DataError(
            f"{path}: the category {examples(nameless)} has no name. Give each category a text."
        )
    boxes = content["annotations"]
    for what, ids in (
        ("images have the same id", images),
        ("images have the same file name", image_names(content)),
        ("categories have the same id", categories),
        ("categories have the same name", names),
        ("annotations have the same id", [box["id"] for box in boxes if "id" in box]),
    ):
        repeated = [key for key, count in Counter(ids).items() if count > 1]
        if repeated:
            raise DataError(
                f"{path}: {len(repeated)} times, {what}, e.g. {examples(repeated)}. Make each "
                "unique."
            )
    for key, known in (("image_id", set(images)), ("category_id", set(categories))):
        unknown = [box[key] for box in boxes if box[key] not in known]
        if unknown:
            raise DataError(
                f"{path}: {len(unknown)} annotations have a {key} that the file does not list, "
                f"e.g. {examples(unknown)}. Download it again."
            )
    broken = [box.get("id", index) for index, box in enumerate(boxes) if not _is_box(box["bbox"])]
    if broken:
        raise DataError(
            f"{path}: the bbox of {len(broken)} annotations is not [x, y, width, height] in finite "
            f"numbers with a size of 0 or more, e.g. of annotation {examples(broken)}."
        )
    areas = [
        (box.get("id", index), box["area"]) for index, box in enumerate(boxes) if "area" in box
    ]
    odd = [key for key, area in areas if not _is_number(area) or area < 0]
    if odd:
        raise DataError(
            f"{path}: the area of {len(odd)} annotations is not a finite number of 0 or more, e.g. "
            f"of annotation {examples(odd)}; COCO's evaluation would count no such object. Correct "
            "the areas."
        )


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(map(_is_number, box))
        and box[2] >= 0
        and box[3] >= 0
    )


def _is_number(value: Any) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and math.isfinite(value)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def image_names(content: dict[str, Any]) -> list[str]:
    """Paths of the images below their folder, in the order of the file (`./1.jpg` is `1.jpg`)."""
    return [posixpath.normpath(image["file_name"]) for image in content["images"]]


def outside_boxes(content: dict[str, Any]) -> LeftOver:
    """Boxes that have no part inside their image, which a detector neither learns nor finds."""
    size_of = {
        image["id"]: (image.get("width"), image.get("height")) for image in content["images"]
    }
    left_over = LeftOver()
    for index, box in enumerate(content["annotations"]):
        width, height = size_of[box["image_id"]]
        x, y, w, h = box["bbox"]
        if width and height and (x >= width or y >= height or x + w <= 0 or y + h <= 0):
            left_over.add(OUTSIDE, f"annotation {box.get('id', index)}")
    return left_over


def coco_classes(paths: Sequence[Path]) -> ClassTable:
    """The categories of the first file, in its order, with which those of the others must agree.

    Args:
        paths: Annotation files of all splits, the training split's first.

    Raises:
        DataError: A file has a category that the first has not, or under another id or name.
    """
    first = _categories(paths[0])
    for path in paths[1:]:
        for key, name in _categories(path).items():
            if first.get(key) != name:
                known = f"is {shown(first[key])!r}" if key in first else "does not exist"
                raise DataError(
                    f"{path}: category {key} is {shown(name)!r}, and in {paths[0]} it {known}. "
                    "Both files need the same ids and names, in any order."
                )
    return ClassTable(tuple(first), tuple(first.values()), source=f"the categories of {paths[0]}")


def _categories(path: Path) -> dict[str, str]:
    """Id -> name of a file's categories."""
    return {str(entry["id"]): str(entry["name"]) for entry in read_coco(path)["categories"]}
