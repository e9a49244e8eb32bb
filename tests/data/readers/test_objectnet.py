"""ObjectNet: the classes that ImageNet has, without the red border."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError
from tests.data.small_sets import image, objectnet, text

OpenSplit = Callable[..., Dataset]


@pytest.fixture
def things(tmp_path: Path) -> Path:
    objectnet(tmp_path)
    (tmp_path / "objectnet/objectnet-1.0").rename(tmp_path / "set")
    return tmp_path / "set"


def test_only_shared_classes(
    things: Path, open_split: OpenSplit, caplog: pytest.LogCaptureFixture
) -> None:
    image(things / "images/unheard_of/a.png")
    with caplog.at_level(logging.WARNING):
        dataset = open_split("test", kind="objectnet")
    assert dataset.sample_ids == ["alarm_clock/a.png", "backpack/a.png"]
    assert dataset.class_names == ["alarm clock", "backpack"]
    assert dataset.need_labels().tolist() == [0, 1]
    assert "1 images of classes that ImageNet does not have (air_freshener/a.png)" in caplog.text
    assert "1 images in folders that the mappings do not name (unheard_of/a.png)" in caplog.text


def test_border_is_cut_off(things: Path, open_split: OpenSplit) -> None:
    picture = np.zeros((10, 12, 3), dtype=np.uint8)
    picture[:, :, 0] = 255
    picture[2:-2, 2:-2] = 7
    Image.fromarray(picture).save(things / "images/backpack/a.png")
    dataset = open_split("test", kind="objectnet")
    assert np.asarray(dataset.image(1)).tolist() == np.full((6, 8, 3), 7).tolist()
    assert pickle.loads(pickle.dumps(dataset.read))(1).size == (8, 6)
    whole = open_split("test", kind="objectnet", border=0)
    assert whole.image(1).size == (12, 10)
    assert whole.fingerprint != dataset.fingerprint
    image(things / "images/backpack/a.png", size=(4, 9))
    with pytest.raises(DataError, match=r"has 4 x 9 pixels and a border of 2: nothing would"):
        dataset.image(1)


def test_broken_mappings(things: Path, open_split: OpenSplit) -> None:
    text(things / "mappings/objectnet_to_imagenet_1k.json", '{"Sofa": "studio couch"}')
    with pytest.raises(DataError, match=r"names 1 classes that folder_to_objectnet_label"):
        open_split("test", kind="objectnet")
    text(things / "mappings/objectnet_to_imagenet_1k.json", "[1]")
    with pytest.raises(DataError, match=r"does not map words to words"):
        open_split("test", kind="objectnet")
