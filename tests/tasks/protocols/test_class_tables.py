"""Two splits of one data set: one class table, whichever split lacks a class; what is left out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.config import validate
from maskclip_bench.data.readers import forget, open_dataset
from maskclip_bench.errors import ConfigError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, TaskDeclaration
from maskclip_bench.tasks.measure import measure
from maskclip_bench.tasks.protocols.prompts import class_names_of

COLOURS = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cow": (0, 0, 250), "dog": (250, 250, 0)}


def insects(**changes: Any) -> TaskDeclaration:
    values = {
        "display_name": "Insects",
        "world": "real",
        "reader": {"kind": "image_folder", "root": "insects"},
        "splits": {"train": "train", "test": "val"},
        "protocols": {"knn": {}, "linear_probe": {}, "few_shot": {"shots": 2}},
        "obtain": "draw them",
    }
    declared = validate({**values, **changes}, TaskDeclaration, where="insects")
    return declared.model_copy(update={"name": "insects"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four plain colours, ten images each in two splits."""
    forget()
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, colour in COLOURS.items():
            folder = tmp_path / "insects" / split / name
            folder.mkdir(parents=True)
            for index in range(10):
                noise = generator.normal(colour, 5, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(folder / f"{index}.png")
    return tmp_path


def score(protocol: str, root: Path, backbone: Any) -> float:
    workspace = Workspace(root=root / "workspace", data=root)
    result = measure(PROTOCOLS[protocol], insects(), backbone, workspace=workspace)
    return result.metrics[result.primary_metric].value


@pytest.mark.parametrize("protocol", ["knn", "linear_probe", "few_shot"])
@pytest.mark.parametrize("name", ["ant", "bee", "dog"])
def test_class_that_is_absent_from_the_test_split__shifts_no_label(
    name: str, protocol: str, root: Path, colour_backbone: Callable[[], Any]
) -> None:
    shutil.rmtree(root / "insects/val" / name)
    assert score(protocol, root, colour_backbone()) == 1.0


@pytest.mark.parametrize("protocol", ["knn", "linear_probe"])
def test_class_that_is_absent_from_the_training_split__is_never_right_and_said(
    protocol: str,
    root: Path,
    colour_backbone: Callable[[], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.rmtree(root / "insects/train/bee")
    assert score(protocol, root, colour_backbone()) == 0.75
    assert "1 classes of val have no image in train (bee)" in caplog.text


def test_left_over__is_in_the_measurement(root: Path, colour_backbone: Callable[[], Any]) -> None:
    Image.new("RGB", (8, 8)).save(root / "insects/val/stray.png")
    (root / "insects/train/ant/raw.heic").write_bytes(b"x")
    workspace = Workspace(root=root / "workspace", data=root)
    result = measure(PROTOCOLS["knn"], insects(), colour_backbone(), workspace=workspace)
    assert result.details["left_over"] == {
        "test": {"images beside the class folders": {"count": 1, "first": ["stray.png"]}},
        "train": {
            "images of a format that the installed Pillow cannot decode": {
                "count": 1, "first": ["ant/raw.heic"],
            }
        },
    }  # fmt: skip


def test_names__that_two_classes_share(root: Path) -> None:
    (root / "insects/classes.txt").write_text("ant owl\nbee jay\ncow owl\ndog kite\n")
    reader = {"kind": "image_folder", "root": "insects", "classes": "classes.txt"}
    task = insects(reader=reader)
    dataset = open_dataset(task.reader, "val", root)
    with pytest.raises(ConfigError, match="the classes 0 and 2 are both called 'owl'"):
        class_names_of(task, dataset)
    named = insects(reader=reader, class_names={"names": ["a", "b", "c", "d"]})
    assert class_names_of(named, dataset) == [["a"], ["b"], ["c"], ["d"]]


def test_names__that_a_rule_makes_equal(root: Path) -> None:
    task = insects(class_names={"replace": {"ant": "x", "bee": "x"}})
    with pytest.raises(ConfigError, match="the classes 0 and 1 are both called 'x'"):
        class_names_of(task, open_dataset(task.reader, "val", root))
