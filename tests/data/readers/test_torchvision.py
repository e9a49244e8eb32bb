"""Data sets of torchvision: splits, and classes that each split would number for itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from maskclip_bench.data.class_table import same_classes
from maskclip_bench.data.readers import Dataset, ReaderDeclaration, missing_files
from maskclip_bench.errors import ConfigError, DataError

OpenSplit = Callable[..., Dataset]


@pytest.fixture
def eurosat(tmp_path: Path, put_image: Callable[..., Path]) -> Path:
    """The one torchvision data set that is plain folders."""
    for name in ("Forest", "River"):
        for image in range(5):
            put_image(tmp_path / "set/eurosat/2750" / name / f"{image}.jpg")
    return tmp_path


def test_split_by_class(eurosat: Path, open_split: OpenSplit) -> None:
    declared: dict[str, Any] = {"kind": "torchvision", "dataset": "EuroSAT", "train_per_class": 3}
    train, test = open_split("train", **declared), open_split("test", **declared)
    assert train.need_labels().tolist() == [0] * 3 + [1] * 3
    assert test.need_labels().tolist() == [0] * 2 + [1] * 2
    assert not set(train.sample_ids) & set(test.sample_ids)
    assert train.class_names == ["Forest", "River"]
    assert test.image(0).size == (6, 6)
    assert train.fingerprint != test.fingerprint
    with pytest.raises(ConfigError, match="makes the splits train and test, not 'val'"):
        open_split("val", **declared)


class PerSplit(torchvision.datasets.VisionDataset):
    """Numbers the classes that the split has, as several of torchvision's do."""

    def __init__(self, root: str, split: str) -> None:
        super().__init__(root)
        self.classes = ["ant", "cow"] if split == "train" else ["ant", "bee", "cow"]
        self._labels = list(range(len(self.classes)))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Any:
        return Image.new("I;16", (2, 2), 65535), self._labels[index]


def test_classes__numbered_by_each_split_mean_the_same_in_both(
    tmp_path: Path, open_split: OpenSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "PerSplit", PerSplit, raising=False)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/file").write_text("")
    opened = [
        open_split(split, kind="torchvision", dataset="PerSplit", splits=("train", "test"))
        for split in ("train", "test")
    ]
    assert same_classes(*opened).names == ("ant", "bee", "cow")
    assert opened[0].need_labels().tolist() == [0, 2]
    assert opened[1].need_labels().tolist() == [0, 1, 2]
    assert np.asarray(opened[0].image(0)).min() == 255  # by the rules of data.images


def test_it_is_not_downloaded(tmp_path: Path, open_split: OpenSplit) -> None:
    (tmp_path / "set").mkdir()
    declaration = ReaderDeclaration(kind="torchvision", root="set", dataset="CIFAR10")  # type: ignore[call-arg]
    missing = missing_files(declaration, ["test"], tmp_path)
    assert missing == f"the folder {tmp_path / 'set'} is empty"
    (tmp_path / "set/readme").write_text("")
    with pytest.raises(DataError, match=r"torchvision cannot open CIFAR10 .* not found"):
        open_split("test", kind="torchvision", dataset="CIFAR10")


def test_declaration__that_torchvision_refuses(eurosat: Path, open_split: OpenSplit) -> None:
    with pytest.raises(ConfigError, match=r"no data set 'CIFAR11'. Did you mean 'CIFAR10'"):
        open_split("test", kind="torchvision", dataset="CIFAR11")
    with pytest.raises(ConfigError, match="EuroSAT does not take these options"):
        open_split("test", kind="torchvision", dataset="EuroSAT", options={"colour": 3})
