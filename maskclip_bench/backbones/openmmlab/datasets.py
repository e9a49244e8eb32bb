"""Data sets in the layouts of ADE20K and COCO whose classes stand in their own files.

mmseg's `ADE20KDataset` and mmdet's `CocoDataset` know the classes of the real sets; these builders
read them from the data (`classes.json`, the categories of the annotation file), so that the demo
world and a user's own data need no class list in a config. They import mmseg and mmdet only when
they are called.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from maskclip_bench.errors import DataError


@DATASETS.register_module()
def ADE20KLayout(
    *, data_root: str, split: str, num_classes: int | None = None, **dataset: Any
) -> Any:
    """An mmseg data set: `images/{split}/*.jpg`, `annotations/{split}/*.png` (0 = unlabelled).

    Args:
        data_root: Folder that also holds `classes.json`, a list of `{"name", "color"?}` in the
            order of the labels 1..K.
        split: Folder name, e.g. "training".
        num_classes: What the heads of the config expect; None = do not check.
        dataset: More for mmseg's `BaseSegDataset`.

    Raises:
        DataError: The class list is missing, or has another length than `num_classes`.
    """
    from mmseg.datasets import BaseSegDataset

    classes, palette = read_classes(Path(data_root), num_classes=num_classes)
    return BaseSegDataset(
        data_root=data_root,
        data_prefix={"img_path": f"images/{split}", "seg_map_path": f"annotations/{split}"},
        metainfo={"classes": classes, **({"palette": palette} if palette else {})},
        reduce_zero_label=True,
        **dataset,
    )


@DATASETS.register_module()
def COCOLayout(
    *, data_root: str, ann_file: str, num_classes: int | None = None, **dataset: Any
) -> Any:
    """An mmdet `CocoDataset` with the categories of its own annotation file, in their order.

    Args:
        data_root: What the paths are relative to.
        ann_file: COCO JSON.
        num_classes: What the heads of the config expect; None = do not check.
        dataset: More for `CocoDataset`.

    Raises:
        DataError: The annotation file is missing or broken, or has another number of categories.
    """
    from mmdet.datasets import CocoDataset

    names = read_categories(Path(data_root) / ann_file, num_classes=num_classes)
    return CocoDataset(
        data_root=data_root, ann_file=ann_file, metainfo={"classes": tuple(names)}, **dataset
    )


def read_classes(
    data_root: Path, *, num_classes: int | None = None
) -> tuple[tuple[str, ...], list[list[int]] | None]:
    """Class names and, if every class has one, colours from `classes.json`.

    Raises:
        DataError: The file is missing or broken, or has another length than `num_classes`.
    """
    path = data_root / "classes.json"
    entries = _read_json(path)
    if isinstance(entries, dict):
        entries = entries.get("classes")
    if not isinstance(entries, list) or not all("name" in entry for entry in entries):
        raise DataError(f'{path} should be a list of {{"name": ...}} in the order of the labels.')
    _check_number(len(entries), num_classes, path)
    colors = [entry.get("color") for entry in entries]
    palette = [list(color) for color in colors] if all(colors) else None
    return tuple(entry["name"] for entry in entries), palette


def read_categories(path: Path, *, num_classes: int | None = None) -> list[str]:
    """Category names of a COCO file, in the order of the file.

    Raises:
        DataError: The file is missing or broken, or has another number of categories.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or "categories" not in content:
        raise DataError(f"{path} is no COCO annotation file: it has no `categories`.")
    names = [category["name"] for category in content["categories"]]
    _check_number(len(names), num_classes, path)
    return names


def _check_number(found: int, expected: int | None, path: Path) -> None:
    if expected is not None and found != expected:
        raise DataError(
            f"{path} has {found} classes, and the config is written for {expected}. Set its "
            f"num_classes to {found}."
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"No file {path}. Set the config's data_root (or MASKCLIP_BENCH_DATA) to the place of "
            "the data; the demo data is made by: maskclip-bench data prepare demo"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
