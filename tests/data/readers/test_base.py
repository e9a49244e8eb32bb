"""Kinds of readers: each with its own keys, built in or of another package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import ValidationError

from maskclip_bench.config import validate
from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.readers import (
    READERS,
    ReaderDeclaration,
    missing_files,
    open_dataset,
)
from maskclip_bench.errors import ConfigError, DataError, UnknownNameError


def reader(**values: Any) -> ReaderDeclaration:
    return validate({"root": "set", **values}, ReaderDeclaration, where="reader")


def test_kind__chooses_the_declaration() -> None:
    assert type(reader(kind="karpathy", file="a.json")).__name__ == "Karpathy"
    assert type(ReaderDeclaration(kind="image_folder", root="x")).__name__ == "ImageFolder"  # type: ignore[call-arg]
    assert reader(kind="ade20k").model_dump() == {
        "kind": "ade20k", "root": "set", "classes": None, "class_field": "name",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"kind": "image_folder", "dataset": "CIFAR10", "train_per_class": 5},
            r"kind image_folder has no key 'dataset'\. It is a key of torchvision\.",
        ),
        ({"kind": "image_folder", "clases": "x"}, "Did you mean 'classes'"),
        ({}, "'kind' is missing. Set it to one of: image_folder, torchvision"),
        ({"kind": "imagefolder"}, "No kind of reader 'imagefolder'. Did you mean 'image_folder'"),
        ({"kind": 3}, "No kind of reader '3'"),
        ({"kind": "karpathy"}, "'file' is missing"),
        ({"kind": "image_folder", "groups": {"pattern": "("}}, "is no regular expression"),
    ],
)
def test_declaration__that_does_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reader(**values)


def test_declaration__made_in_python() -> None:
    with pytest.raises(ValidationError, match="has no key 'dataset'"):
        ReaderDeclaration(kind="image_folder", root="x", dataset="CIFAR10")  # type: ignore[call-arg]
    with pytest.raises(UnknownNameError, match="No kind of reader 'cupboard'"):
        ReaderDeclaration(kind="cupboard", root="x")


def test_missing__split_is_named_before_anything_is_read(
    tmp_path: Path, put_image: Callable[..., Path]
) -> None:
    put_image(tmp_path / "set/val/n01/0.png")
    assert missing_files(reader(kind="image_folder"), ["val"], tmp_path) is None
    missing = missing_files(reader(kind="image_folder"), ["val", "train"], tmp_path)
    assert missing == f"no folder {tmp_path / 'set' / 'train'}"
    with pytest.raises(DataError, match=r"Birds: no folder .*train"):
        open_dataset(reader(kind="image_folder"), "train", tmp_path, what="Birds")


class OneImage(ReaderDeclaration):
    """A kind of another package: one image, one class."""

    kind: Literal["one_image"] = "one_image"
    word: str

    def class_table(self, splits: Any, root: Path, *, what: str) -> ClassTable:
        """One class."""
        return ClassTable((self.word,), (self.word,), source=what)

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """One image."""
        path = root / f"{split}.png"
        return Dataset(
            name=what,
            split=split,
            sample_ids=[path.name],
            groups=[path.name],
            read=FileImages([path]),
            files=[path],
            labels=np.zeros(1, np.int64),
            classes=classes,
        )


def test_kind_of_another_package(tmp_path: Path, put_image: Callable[..., Path]) -> None:
    READERS.register("one_image", OneImage)
    try:
        put_image(tmp_path / "set/val.png")
        opened = open_dataset(reader(kind="one_image", word="owl"), "val", tmp_path)
        assert opened.class_names == ["owl"]
        with pytest.raises(ConfigError, match="kind one_image has no key 'dataset'"):
            reader(kind="one_image", word="owl", dataset="CIFAR10")
    finally:
        READERS.unregister("one_image")


def test_registry__imports_nothing_to_list_names() -> None:
    assert READERS.names()[:2] == ["image_folder", "torchvision"]
