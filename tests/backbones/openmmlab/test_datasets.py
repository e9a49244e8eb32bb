"""Class lists read from the data, and what is said of data that is not as a config expects it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.backbones.openmmlab import datasets
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
    with pytest.raises(DataError, match="is no COCO annotation file: it has no list `categories`"):
        read_categories(file)
    file.write_text(json.dumps({"categories": [{"id": 1, "name": "car"}]}))
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


def write_coco(root: Path, split: str, categories: list[dict[str, object]]) -> None:
    """Two images: a cat on the first, a dog on the second, by name."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir()
    by_name = {category["name"]: category["id"] for category in categories}
    images, boxes = [], []
    for index, name in enumerate(("cat", "dog")):
        Image.new("RGB", (16, 16)).save(root / split / f"{index}.jpg")
        images.append({"id": index, "file_name": f"{index}.jpg", "width": 16, "height": 16})
        boxes.append(
            {
                "id": index + 1,
                "image_id": index,
                "category_id": by_name[name],
                "bbox": [1, 1, 8, 8],
                "area": 64,
                "iscrowd": 0,
                "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]],
            }
        )
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / f"annotations/{split}.json").write_text(json.dumps(content))


def categories(*names: str, first: int = 3) -> list[dict[str, object]]:
    return [{"id": first + index, "name": name} for index, name in enumerate(names)]


ORDERS = {
    "another order": [{"id": 4, "name": "dog"}, {"id": 3, "name": "cat"}],
    "other ids": categories("cat", "dog", first=70),
    "ids the other way round": categories("dog", "cat"),
}


def labels(root: Path, split: str, **more: object) -> tuple[tuple[str, ...], list[int]]:
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    dataset = datasets.COCOLayout(
        data_root=str(root),
        ann_file=f"annotations/{split}.json",
        data_prefix={"img": f"{split}/"},
        pipeline=[],
        test_mode=True,
        **more,
    )
    found = [dataset.get_data_info(i)["instances"][0]["bbox_label"] for i in range(2)]
    return dataset.metainfo["classes"], found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("val", ORDERS)
def test_coco__a_label_means_one_category_in_all_files(tmp_path: Path, val: str) -> None:
    pytest.importorskip("mmdet")
    write_coco(tmp_path, "train", categories("cat", "dog"))
    write_coco(tmp_path, "val", ORDERS[val])
    assert labels(tmp_path, "train") == (("cat", "dog"), [0, 1])
    assert labels(tmp_path, "val") == (("cat", "dog"), [0, 1])
    assert labels(tmp_path, "val", classes=["dog", "cat"]) == (("dog", "cat"), [1, 0])


@pytest.mark.filterwarnings("ignore")
def test_coco__the_metric_numbers_categories_likewise(tmp_path: Path) -> None:
    """Detections that are the truth have AP 1, whatever the order in the file."""
    pytest.importorskip("mmdet")
    import torch
    from mmdet.evaluation import CocoMetric

    datasets.order_categories()
    write_coco(tmp_path, "val", ORDERS["another order"])
    metric = CocoMetric(ann_file=str(tmp_path / "annotations/val.json"), metric="bbox")
    metric.dataset_meta = {"classes": ("cat", "dog")}
    for index in range(2):
        found = {
            "bboxes": torch.tensor([[1.0, 1.0, 9.0, 9.0]]),
            "scores": torch.ones(1),
            "labels": torch.tensor([index]),
        }
        metric.process({}, [{"img_id": index, "ori_shape": (16, 16), "pred_instances": found}])
    assert metric.evaluate(size=2)["coco/bbox_mAP"] == 1.0


@pytest.mark.filterwarnings("ignore")
def test_coco__other_categories_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    from mmdet.datasets import CocoDataset

    write_coco(tmp_path, "val", categories("cat", "dog"))
    with pytest.raises(DataError, match=r"has the categories cat, dog.*declared with cat, cow"):
        labels(tmp_path, "val", classes=["cat", "cow"])
    datasets.order_categories()
    with pytest.raises(
        DataError, match=r"1 of the 2 classes .* e\.g\. 'cow'; the file has cat, dog"
    ):
        CocoDataset(
            ann_file=str(tmp_path / "annotations/val.json"),
            metainfo={"classes": ("cat", "cow")},
            pipeline=[],
        )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (categories("cat", "cat"), "two categories have the name 'cat'"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "two categories have the id 1"),
    ],
)
def test_coco__repeated_categories(
    tmp_path: Path, entries: list[dict[str, object]], message: str
) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"categories": entries}))
    with pytest.raises(DataError, match=message):
        datasets.read_categories(file)


@pytest.mark.filterwarnings("ignore")
def test_samples__are_the_list_in_its_order(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    from mmengine.registry import init_default_scope

    init_default_scope("mmseg")
    pairs = []
    for name in ("b/1.JPEG", "a/1.png", "c.bmp"):
        image, mask = tmp_path / name, (tmp_path / "masks" / name).with_suffix(".png")
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(image)
        Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8).repeat(4, 0).repeat(4, 1)).save(mask)
        pairs.append([str(image), str(mask)])
    file = tmp_path / "samples.json"
    file.write_text(json.dumps(pairs))
    steps = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
    dataset = datasets.SegmentationSamples(
        samples_file=str(file), classes=["x", "y"], num_classes=2, pipeline=steps
    )
    assert [dataset[index]["img_path"] for index in range(3)] == [image for image, _ in pairs]
    assert set(dataset[0]["gt_seg_map"].flatten().tolist()) == {0, 1, 255}  # 0 and 255: unlabelled
    known = datasets.SegmentationSamples(
        samples_file=str(file), like="ADE20KDataset", pipeline=steps
    )
    assert len(known.metainfo["classes"]) == 150
    with pytest.raises(DataError, match=r"has 2 classes, and the config is written for 5"):
        datasets.SegmentationSamples(samples_file=str(file), classes=["x", "y"], num_classes=5)
