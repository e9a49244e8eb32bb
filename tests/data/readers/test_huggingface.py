"""Data sets in Hugging Face's formats, from folders; nothing is downloaded."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskclip_bench.data.readers import Dataset
from maskclip_bench.data.readers.huggingface import HuggingFaceSet
from maskclip_bench.errors import DataError, MissingDependencyError
from maskclip_bench.testing import check_reader

datasets = pytest.importorskip("datasets")

OpenSplit = Callable[..., Dataset]
Png = Callable[[int], bytes]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    logging.getLogger("datasets").setLevel(logging.ERROR)


def table(png: Png, numbers: list[int], labels: list[int]) -> Any:
    features = datasets.Features(
        {
            "words": datasets.Value("string"),
            "photo": datasets.Image(),
            "animal": datasets.ClassLabel(names=["owl", "bat"]),
        }
    )
    return datasets.Dataset.from_dict(
        {
            "words": [f"picture  {number}" for number in numbers],
            "photo": [{"bytes": png(number), "path": None} for number in numbers],
            "animal": labels,
        },
        features=features,
    )


@pytest.fixture
def parquet(tmp_path: Path, png: Png) -> Path:
    """As the hub has it: Parquet files that name their split."""
    folder = tmp_path / "set/data"
    folder.mkdir(parents=True)
    table(png, [1, 2, 3], [0, 1, 1]).to_parquet(folder / "train-00000-of-00001.parquet")
    table(png, [4, 5], [1, 0]).to_parquet(folder / "test-00000-of-00001.parquet")
    return tmp_path / "set"


def test_columns_are_found_by_their_type(parquet: Path, open_split: OpenSplit) -> None:
    dataset = open_split("test", kind="huggingface", splits=("train", "test"))
    assert dataset.need_labels().tolist() == [1, 0]
    assert dataset.class_names == ["owl", "bat"]
    read = pickle.loads(pickle.dumps(dataset.read))
    assert [np.asarray(read(index))[0, 0, 0].item() for index in range(2)] == [4, 5]
    dataset.check_images()
    assert dataset.captions is None


def test_named_columns(parquet: Path, open_split: OpenSplit) -> None:
    dataset = open_split("train", kind="huggingface", image="photo", captions="words")
    assert dataset.need_captions() == [["picture 1"], ["picture 2"], ["picture 3"]]


def test_saved_to_disk(tmp_path: Path, png: Png, open_split: OpenSplit) -> None:
    both = datasets.DatasetDict({"test": table(png, [7], [1])})
    both.save_to_disk(tmp_path / "set")
    dataset = open_split("test", kind="huggingface")
    assert np.asarray(dataset.image(0))[0, 0, 0] == 7


def test_labels_that_are_words(tmp_path: Path, png: Png, open_split: OpenSplit) -> None:
    plain = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(1), "path": None}] * 3, "kind": ["owl", "bat", "owl"]},
        features=datasets.Features({"image": datasets.Image(), "kind": datasets.Value("string")}),
    )
    plain.save_to_disk(tmp_path / "set")
    dataset = open_split("test", kind="huggingface", label="kind")
    assert dataset.class_names == ["bat", "owl"]
    assert dataset.need_labels().tolist() == [1, 0, 1]


def test_errors(parquet: Path, open_split: OpenSplit, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no split 'validation'.* It has: train, test"):
        open_split("validation", kind="huggingface")
    with pytest.raises(DataError, match=r"no column of classes 'animals'. Did you mean 'animal'"):
        open_split("test", kind="huggingface", label="animals")
    with pytest.raises(DataError, match=r"no column of images 'image'"):
        open_split("test", kind="huggingface", image="image")
    for path in (parquet / "data").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(DataError, match=r"the library datasets cannot open"):
        open_split("test", kind="huggingface", captions="words")


def test_row_without_caption(tmp_path: Path, png: Png, open_split: OpenSplit) -> None:
    rows = table(png, [1, 2], [0, 1]).remove_columns("words")
    rows = rows.add_column("words", [["a", " "], []])
    rows.save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"1 of 2 rows have no caption, e.g. row 1"):
        open_split("test", kind="huggingface", captions="words")


def test_without_the_library(
    parquet: Path, open_split: OpenSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'maskclip-bench\[huggingface\]"):
        open_split("test", kind="huggingface", config="other")


def test_conformance(parquet: Path, tmp_path: Path) -> None:
    check_reader(HuggingFaceSet(root="set"), splits=("train", "test"), data_root=tmp_path)


def saved(folder: Path, png: Png, **splits: tuple[Any, list[Any]]) -> None:
    """A DatasetDict whose splits have a column `label` of their own type."""
    made = {}
    for split, (kind, values) in splits.items():
        features = datasets.Features({"photo": datasets.Image(), "label": kind})
        photos = [{"bytes": png(number), "path": None} for number in range(len(values))]
        columns = {"photo": photos, "label": values}
        made[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(made).save_to_disk(folder)


BOTH = ("train", "test")


def test_classes__of_all_splits_alike(tmp_path: Path, png: Png, open_split: OpenSplit) -> None:
    one, other = (datasets.ClassLabel(names=names) for names in (["owl", "bat"], ["bat", "owl"]))
    saved(tmp_path / "set", png, train=(one, [0, 1]), test=(other, [0, 1]))
    with pytest.raises(DataError, match=r"the splits train, test of .* have other classes"):
        open_split("test", kind="huggingface", splits=BOTH)


def test_one_saved_split__is_not_all_of_them(
    tmp_path: Path, png: Png, open_split: OpenSplit
) -> None:
    table(png, [1, 2], [0, 1]).save_to_disk(tmp_path / "set")
    assert len(open_split("test", kind="huggingface")) == 2
    with pytest.raises(DataError, match=r"holds one split, and train, test would all be its rows"):
        open_split("test", kind="huggingface", splits=BOTH)


@pytest.mark.parametrize(
    ("kind", "values", "labels"),
    [
        ("float32", [10.0, 0.0, 2.0], [10, 0, 2]),
        ("string", ["10", "0", "2"], [10, 0, 2]),
        ("string", ["owl", "bat", "owl"], [1, 0, 1]),
        ("bool", [True, False, True], [1, 0, 1]),
    ],
)
def test_labels__of_plain_columns(
    tmp_path: Path,
    png: Png,
    open_split: OpenSplit,
    kind: str,
    values: list[Any],
    labels: list[int],
) -> None:
    saved(tmp_path / "set", png, test=(datasets.Value(kind), values))
    dataset = open_split("test", kind="huggingface", label="label")
    assert dataset.need_labels().tolist() == labels


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        (datasets.Value("float32"), [0.5, 1.0], r"row 0, column 'label': 0\.5 is no text"),
        (datasets.Value("string"), ["owl", None], r"1 of 2 rows have no 'label', e\.g\. row 1"),
        (datasets.ClassLabel(names=["owl"]), [0, None], r"1 labels are no class, e\.g\. -1"),
        (datasets.Value("int64"), [0, -1], "-1 is no class index"),
    ],
)
def test_labels__that_are_none(
    tmp_path: Path, png: Png, open_split: OpenSplit, kind: Any, values: list[Any], text: str
) -> None:
    saved(tmp_path / "set", png, test=(kind, values))
    with pytest.raises(DataError, match=text):
        open_split("test", kind="huggingface", label="label")


def test_captions__that_are_no_text(tmp_path: Path, png: Png, open_split: OpenSplit) -> None:
    saved(tmp_path / "set", png, test=(datasets.Value("int64"), [0, 1]))
    with pytest.raises(DataError, match="row 0, column 'label': 0 is no caption"):
        open_split("test", kind="huggingface", captions="label")
