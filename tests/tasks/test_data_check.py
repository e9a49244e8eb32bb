"""The doctor finds what is wrong with the files of a data set, and nothing where all is right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.config import validate
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.data_check import Diagnosis, check_data, misplaced
from maskclip_bench.tasks.declaration import TaskDeclaration, load_task_declaration
from tests.data.small_sets import image, imagenet_like, karpathy, text, voc2007


def birds(**changes: Any) -> TaskDeclaration:
    values = {
        "name": "birds",
        "display_name": "Birds",
        "world": "real",
        "reader": {"kind": "image_folder", "root": "birds"},
        "splits": {"train": "train", "test": "test"},
        "class_names": {"replace": {"_": " "}},
        "protocols": {"zero_shot_classification": {"prompts": "class_name_only"}},
        "obtain": "Draw them.",
    }
    return validate({**values, **changes}, TaskDeclaration, where="birds")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two splits of two classes, no two images equal."""
    value = 0
    for split in ("train", "test"):
        for name in ("barn_owl", "fruit_bat"):
            for number in range(2):
                image(tmp_path / f"birds/{split}/{name}/{number}.png", value=(value := value + 9))
    return tmp_path


def diagnosis(task: TaskDeclaration, data: Path) -> Diagnosis:
    return check_data(task, Workspace(root=data / "workspace", data=data))


def errors(found: Diagnosis) -> list[str]:
    return [item.text for item in found.findings if item.level == "error"]


def warnings(found: Diagnosis) -> list[str]:
    return [item.text for item in found.findings if item.level == "warning"]


def test_nothing_wrong(data: Path) -> None:
    found = diagnosis(birds(counts={"train": 4, "test": 4}), data)
    assert (found.num_errors, warnings(found), found.missing) == (0, [], None)
    assert "4 images, as published" in [item.text for item in found.findings]
    assert json.loads(json.dumps(found.to_json()))["dataset"] == "birds"


def test_missing(tmp_path: Path) -> None:
    found = diagnosis(birds(), tmp_path)
    assert "no folder" in (found.missing or "")
    assert found.findings == []


def test_counts(data: Path) -> None:
    (data / "birds/test/barn_owl/0.png").unlink()
    found = diagnosis(birds(counts={"test": 4}), data)
    assert errors(found) == [
        "3 images, and 4 are published: a number on these is another one. Download or unpack the "
        "split again."
    ]


def test_unreadable(data: Path) -> None:
    (data / "birds/train/barn_owl/1.png").write_bytes(b"")
    found = diagnosis(birds(), data)
    assert len(errors(found)) == 1
    assert "1 of 4 images cannot be used" in errors(found)[0]


def test_duplicates__within_and_between_splits(data: Path) -> None:
    content = (data / "birds/train/barn_owl/0.png").read_bytes()
    (data / "birds/train/barn_owl/1.png").write_bytes(content)
    (data / "birds/test/fruit_bat/1.png").write_bytes(content)
    assert warnings(diagnosis(birds(), data)) == [
        "1 images occur twice or more, e.g. barn_owl/0.png, barn_owl/1.png",
        "1 images are also in train, e.g. fruit_bat/1.png: what learns on one has seen them",
    ]


def test_class_without_image_and_what_is_left_over(data: Path) -> None:
    (data / "birds/test/cuckoo").mkdir()
    text(data / "birds/test/notes.txt", "x")
    found = warnings(diagnosis(birds(), data))
    assert any("1 of 3 classes have no image, e.g. cuckoo" in line for line in found)
    assert any("not part of the split: 1 no image by the end" in line for line in found)


def test_one_class_and_what_is_hidden(data: Path) -> None:
    shutil.rmtree(data / "birds/train/fruit_bat")
    (data / "birds/test/fruit_bat").rename(data / "birds/test/.fruit_bat")
    found = diagnosis(birds(), data)
    assert "there is only one class, so every answer is right" in warnings(found)
    texts = [item.text for item in found.findings]
    assert "left out: 1 hidden by a name that begins with a dot, e.g. .fruit_bat" in texts


def test_words_in_another_order(data: Path) -> None:
    task = birds(class_names={"names": ["fruit bat", "barn owl"]})
    assert (
        "2 classes have the words of another one, e.g. the class 'barn_owl' (label 0)"
        in (errors(diagnosis(task, data))[0])
    )
    task = birds(class_names={"names": ["one word"]})
    assert "declares 1 class names, and its data has 2 classes" in errors(diagnosis(task, data))[0]
    assert misplaced(("a", "b"), ["a", "b"]) == misplaced(("x1",), ["a tench"]) == []


def test_broken_split_is_an_error_of_that_split(data: Path) -> None:
    task = birds(reader={"kind": "image_folder", "root": "birds", "classes": "list.txt"})
    text(data / "birds/list.txt", "barn_owl\n")
    found = diagnosis(task, data)
    assert [item.split for item in found.findings if item.level == "error"] == ["train", "test"]
    assert "folders in" in errors(found)[0]


def test_imagenet__flat_validation_folder(tmp_path: Path) -> None:
    imagenet_like(tmp_path / "imagenet", ("train",))
    image(tmp_path / "imagenet/val/ILSVRC2012_val_00000001.JPEG")
    found = diagnosis(load_task_declaration("imagenet"), tmp_path)
    assert any("holds the validation images side by side (ILSVRC2012" in e for e in errors(found))


def test_imagenet__another_number_of_images_a_class(tmp_path: Path) -> None:
    imagenet_like(tmp_path / "imagenet", ("train", "val"))
    found = errors(diagnosis(load_task_declaration("imagenet"), tmp_path))
    assert any("1000 classes have another number of images than 50" in line for line in found)


def test_coco__the_archive_of_another_year(tmp_path: Path) -> None:
    karpathy(tmp_path / "coco_captions", "dataset_coco.json", ".", below="val2014")
    (tmp_path / "coco_captions/val2014").rename(tmp_path / "coco_captions/val2017")
    found = errors(diagnosis(load_task_declaration("coco_captions"), tmp_path))
    assert any("holds COCO 2017 (val2017). Karpathy's splits are of the 2014" in e for e in found)
    (tmp_path / "coco/val2014").mkdir(parents=True)
    instances = diagnosis(load_task_declaration("coco_instances"), tmp_path)
    assert instances.missing is not None
    assert "holds COCO 2014 (val2014), and this task is COCO 2017's" in errors(instances)[0]


def test_captions_an_image(tmp_path: Path) -> None:
    folder = tmp_path / "flickr30k"
    karpathy(folder, "dataset_flickr30k.json", "flickr30k-images", captions=4)
    found = diagnosis(load_task_declaration("flickr30k"), tmp_path)
    assert any("1 images with 4, 1 images with 5; each should have 5" in e for e in errors(found))
    listed = json.loads((folder / "dataset_flickr30k.json").read_text())
    for entry in listed["images"]:
        entry["sentences"] = [{"raw": "the same"}] * 5
    text(folder / "dataset_flickr30k.json", json.dumps(listed))
    found = diagnosis(load_task_declaration("flickr30k"), tmp_path)
    assert any(
        "9 captions are repeated; retrieval counts them as ties" in w for w in warnings(found)
    )


def test_values_of_masks(tmp_path: Path) -> None:
    root, size = tmp_path / "ADEChallengeData2016", (12, 10)
    for split in ("training", "validation"):
        image(root / f"images/{split}/a.jpg", size=size)
        path = root / f"annotations/{split}/a.png"
        path.parent.mkdir(parents=True)
        values = np.resize(np.array([0, 150, 1, 255], dtype=np.uint8), size[::-1])
        Image.fromarray(values).save(path)
    task = load_task_declaration("ade20k")
    found = diagnosis(task, tmp_path)
    assert "all values of the masks are 0 to 150 or 255" in [f.text for f in found.findings]
    Image.new("L", size, 151).save(root / "annotations/validation/a.png")
    assert any("151" in line for line in errors(diagnosis(task, tmp_path)))


def test_several_classes_an_image(tmp_path: Path) -> None:
    voc2007(tmp_path)
    found = diagnosis(load_task_declaration("voc2007"), tmp_path)
    assert [item.level for item in found.findings if "published" in item.text] == ["error"] * 3
