"""Data sets in the layouts of ADE20K and COCO whose classes are in their own files.

mmseg's `ADE20KDataset` and mmdet's `CocoDataset` know the classes of the real sets; these builders
read them from the data (`classes.json`, the categories of the annotation file), so that the demo
world and a user's own data need no class list in a config. `SegmentationSamples` is a list of pairs
that a job was given. They import mmseg and mmdet only when they are called.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from maskclip_bench.data.masks import pair_masks
from maskclip_bench.errors import DataError


@DATASETS.register_module()
def ADE20KLayout(
    *,
    data_root: str,
    split: str,
    num_classes: int | None = None,
    img_suffix: str | None = None,
    seg_map_suffix: str = ".png",
    **dataset: Any,
) -> Any:
    """An mmseg data set: images in `images/{split}`, masks in `annotations/{split}`.

    Masks have 0 or 255 for unlabelled and 1..C for the classes. The samples are those that the
    reader `ade20k` of the benchmark lists.

    Args:
        data_root: Folder that also holds `classes.json`, a list of `{"name", "color"?}` in the
            order of the labels 1..C.
        split: Folder name, e.g. "training".
        num_classes: What the heads of the config expect; None = do not check.
        img_suffix: Only images whose names end so; None = every image.
        seg_map_suffix: How the masks' names end.
        dataset: More for mmseg's `BaseSegDataset`.

    Raises:
        DataError: The class list is missing, or has another length than `num_classes`; an image
            has no mask.
    """
    root = Path(data_root)
    classes, palette = read_classes(root, num_classes=num_classes)
    files, masks, _ = pair_masks(
        root / "images" / split,
        root / "annotations" / split,
        image_suffix=img_suffix,
        mask_suffix=seg_map_suffix,
    )
    return _listed_samples(
        [(str(file.path), str(mask)) for file, mask in zip(files, masks, strict=True)],
        metainfo={"classes": classes, **({"palette": palette} if palette else {})},
        **dataset,
    )


@DATASETS.register_module()
def SegmentationSamples(
    *,
    samples_file: str,
    classes: Sequence[str] | None = None,
    like: str = "BaseSegDataset",
    num_classes: int | None = None,
    **dataset: Any,
) -> Any:
    """An mmseg data set of listed images and masks (0 and 255 = unlabelled, 1..C).

    Args:
        samples_file: JSON list of `[image, mask]`, absolute paths.
        classes: Names of the classes; None takes those that mmseg knows of `like`.
        like: mmseg's data set whose class names are taken.
        num_classes: What the heads of the config expect; None = do not check.
        dataset: More for mmseg's `BaseSegDataset`.

    Raises:
        DataError: The list is missing, or there is another number of classes.
    """
    from mmseg.registry import DATASETS as MMSEG_DATASETS

    pairs = _read_json(Path(samples_file))
    if classes is None:
        metainfo = dict(getattr(MMSEG_DATASETS.get(like), "METAINFO", {}))
    else:
        metainfo = {"classes": tuple(classes)}
        _check_number(len(classes), num_classes, Path(samples_file))
    return _listed_samples(pairs, metainfo=metainfo, **dataset)


def _listed_samples(
    pairs: Sequence[Sequence[str]], *, metainfo: dict[str, Any], **dataset: Any
) -> Any:
    """A data set of mmseg on a list of images and masks instead of a folder."""
    from mmseg.datasets import BaseSegDataset

    class Samples(BaseSegDataset):
        """Reads no folder."""

        def load_data_list(self) -> list[dict[str, Any]]:
            """One entry a pair, in the order of the list."""
            return [
                {
                    "img_path": image,
                    "seg_map_path": mask,
                    "label_map": self.label_map,
                    "reduce_zero_label": self.reduce_zero_label,
                    "seg_fields": [],
                }
                for image, mask in pairs
            ]

    samples = Samples(reduce_zero_label=True, metainfo=metainfo, **dataset)
    Samples.METAINFO = dict(samples.metainfo)  # some scripts of mmseg ask the class
    return samples


@DATASETS.register_module()
def COCOLayout(
    *,
    data_root: str,
    ann_file: str,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    **dataset: Any,
) -> Any:
    """An mmdet `CocoDataset` with the categories of its own annotation file.

    A label is a position in the list of categories. All files of one data root that have the same
    categories get the same list: that of the file that was opened first (in training, the training
    split's). Their order in the other files, and their ids, are free.

    Args:
        data_root: What the paths are relative to.
        ann_file: COCO JSON.
        num_classes: What the heads of the config expect; None = do not check.
        classes: Names of the categories in the order of the labels; None = see above.
        dataset: More for `CocoDataset`.

    Raises:
        DataError: The annotation file is missing or broken, has another number of categories, or
            not those of `classes`.
    """
    from mmdet.datasets import CocoDataset

    order_categories()
    path = Path(data_root) / ann_file
    names = read_categories(path, num_classes=num_classes)
    if classes is None:
        key = (str(Path(data_root).resolve()), frozenset(names))
        classes = _OPENED.setdefault(key, names)
    elif sorted(classes) != sorted(names):
        raise DataError(
            f"{path} has the categories {', '.join(names[:5])}..., and the data set is declared "
            f"with {', '.join(list(classes)[:5])}... Give all files the same categories."
        )
    return CocoDataset(
        data_root=data_root, ann_file=ann_file, metainfo={"classes": tuple(classes)}, **dataset
    )


_OPENED: dict[tuple[str, frozenset[str]], list[str]] = {}
"""(data root, categories) -> the categories in the order of the first file opened."""


def order_categories() -> None:
    """Let mmdet number categories in the order of the names it is given.

    pycocotools returns ids in the order of the file, whatever the order of the names, so a label
    meant another category in a file of another order, in data sets and in metrics.
    """
    from mmdet.datasets.api_wrappers import COCO

    original = COCO.get_cat_ids
    if hasattr(original, "in_order_of_names"):
        return

    def get_cat_ids(
        self: Any,
        cat_names: Sequence[str] | str = (),
        sup_names: Sequence[str] = (),
        cat_ids: Sequence[int] = (),
    ) -> list[int]:
        """Ids of the named categories, in the order of the names."""
        if not cat_names or sup_names or cat_ids:
            return original(self, cat_names, sup_names, cat_ids)
        names = [cat_names] if isinstance(cat_names, str) else list(cat_names)
        ids = {category["name"]: category["id"] for category in self.dataset["categories"]}
        missing = [name for name in names if name not in ids]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(names)} classes of the data set are no category of "
                f"its annotation file, e.g. {missing[0]!r}; the file has "
                f"{', '.join(list(ids)[:5])}... Set metainfo=dict(classes=...) to the file's names."
            )
        return [ids[name] for name in names]

    get_cat_ids.in_order_of_names = True
    COCO.get_cat_ids = get_cat_ids


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
        DataError: The file is missing or broken, two categories have one name or id, or there is
            another number of them.
    """
    content = _read_json(path)
    try:
        names = [str(category["name"]) for category in content["categories"]]
        ids = [category["id"] for category in content["categories"]]
    except (KeyError, TypeError):
        raise DataError(
            f"{path} is no COCO annotation file: it has no list `categories` of `id` and `name`."
        ) from None
    for what, values in (("name", names), ("id", ids)):
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            raise DataError(
                f"{path}: two categories have the {what} {repeated[0]!r}. Give each its own."
            )
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
