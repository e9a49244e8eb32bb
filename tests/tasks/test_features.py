"""The store of features: once, whole, never stale, never of what is not finite."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from maskclip_bench.data.readers import Dataset, open_dataset
from maskclip_bench.errors import ConfigError, DataError, NonFiniteError, StorageError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import feature_files, features
from maskclip_bench.tasks.features import FeatureStore

from .conftest import BlindEncoder, ColourEncoder, make_backbone, squares_task


@pytest.fixture
def store(workspace: Workspace) -> FeatureStore:
    return FeatureStore(workspace.features)


@pytest.fixture
def dataset(data_root: Path) -> Dataset:
    return open_dataset(squares_task().reader, "val", data_root)


def stored(store: FeatureStore, suffix: str) -> list[Path]:
    return sorted(store.root.rglob(f"*.{suffix}"))


def test_images__each_goes_through_once(store: FeatureStore, dataset: Dataset) -> None:
    encoder = ColourEncoder()
    backbone = make_backbone(encoder)
    calls: list[tuple[str, int, int]] = []
    first = store.images(backbone, dataset, progress=lambda *call: calls.append(call))
    again = store.images(backbone, dataset)
    assert encoder.images_seen == len(dataset) == 24
    torch.testing.assert_close(first.backbone, again.backbone, rtol=0, atol=0)
    assert first.joint is not None
    assert first.joint.shape == (24, 3)
    torch.testing.assert_close(first.joint.norm(dim=1), torch.ones(24))
    assert calls[-1] == ("features of val", 24, 24)
    # another store of the same folder finds them, too
    FeatureStore(store.root).images(backbone, dataset)
    assert encoder.images_seen == 24


def test_images__rows_are_in_the_order_of_the_data(store: FeatureStore, dataset: Dataset) -> None:
    backbone = make_backbone(ColourEncoder())
    found = store.images(backbone, dataset).backbone
    one = backbone.forward_features(backbone.transform(dataset.image(17))[None])
    torch.testing.assert_close(found[17], one[0])


def test_images__parts_are_kept_when_interrupted(
    store: FeatureStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(features, "IMAGE_BATCH", 10)
    monkeypatch.setattr(features, "REPORT_SECONDS", 0.0)
    encoder = ColourEncoder()
    backbone = make_backbone(encoder)

    def stop_late(stage: str, done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.images(backbone, dataset, progress=stop_late)
    assert len(stored(store, "safetensors")) == 3  # the last batch ends the split: committed
    stored(store, "safetensors")[-1].unlink()
    found = store.images(backbone, dataset)
    assert encoder.images_seen == 24 + 4
    whole = FeatureStore().images(make_backbone(ColourEncoder()), dataset)
    torch.testing.assert_close(found.backbone, whole.backbone, rtol=0, atol=0)


def test_images__a_damaged_part_is_made_again_with_those_after_it(
    store: FeatureStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(features, "IMAGE_BATCH", 10)
    encoder = ColourEncoder()
    expected = store.images(make_backbone(encoder), dataset).backbone
    (middle,) = store.root.rglob("*-10.safetensors")
    middle.write_bytes(b"")
    found = store.images(make_backbone(encoder), dataset).backbone
    assert encoder.images_seen == 24 + 14
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_store_in_memory__computes_once_and_writes_nothing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = ColourEncoder()
    backbone, memory = make_backbone(encoder), FeatureStore()
    first, again = memory.images(backbone, dataset), memory.images(backbone, dataset)
    assert encoder.images_seen == 24
    assert first.backbone is again.backbone
    memory.texts(backbone, ["red"])
    memory.texts(backbone, ["red"])
    assert encoder.texts_seen == ["red"]
    assert not list(tmp_path.iterdir())


def test_images__two_splits_of_equal_names_do_not_share_features(
    store: FeatureStore, dataset: Dataset
) -> None:
    """Same ids, labels and fingerprint; only the split's name tells them apart."""
    encoder = ColourEncoder()
    backbone = make_backbone(encoder)
    store.images(backbone, dataset)
    store.images(backbone, replace(dataset, split="test"))
    assert encoder.images_seen == 48


class SometimesNaN(ColourEncoder):
    """Cannot cope with green; its text tower not with long words."""

    def encode_image(self, images: Tensor) -> Tensor:
        values = super().encode_image(images)
        return torch.where(values.argmax(1, keepdim=True) == 1, torch.nan, values)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        values = super().encode_text(texts)
        values[[len(text) > 5 for text in texts]] = torch.inf
        return values


def test_images__not_finite_names_row_and_samples(store: FeatureStore, dataset: Dataset) -> None:
    with pytest.raises(NonFiniteError, match=r"toy.*'c1/0\.png', 'c1/1\.png', 'c1/2\.png'"):
        store.images(make_backbone(SometimesNaN()), dataset)
    with pytest.raises(NonFiniteError, match=r"toy.*'yellow'"):
        store.texts(make_backbone(SometimesNaN()), ["red", "yellow"])
    assert not stored(store, "json")


class OneRowForAll(ColourEncoder):
    """Returns one vector, however many images it gets."""

    def encode_image(self, images: Tensor) -> Tensor:
        return super().encode_image(images)[:1]

    def forward_features(self, images: Tensor) -> Tensor:
        return super().forward_features(images)[:1]


def test_images__one_row_an_image_is_needed(store: FeatureStore, dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"for 24 inputs"):
        store.images(make_backbone(OneRowForAll()), dataset)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_images__workers_give_the_same(
    store: FeatureStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backbone = make_backbone(ColourEncoder())
    expected = store.images(backbone, dataset).backbone
    monkeypatch.setattr(features, "WORKERS_FROM_PIXELS", 0)
    found = FeatureStore(tmp_path / "other").images(backbone, dataset).backbone
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "note"])
def test_images__damaged_files_are_made_again(
    damage: str, store: FeatureStore, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = ColourEncoder()
    backbone = make_backbone(encoder)
    expected = store.images(backbone, dataset).backbone
    (path,), (note,) = stored(store, "safetensors"), stored(store, "json")
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        path.unlink()
    else:
        note.write_text("{")
    with caplog.at_level(logging.WARNING):
        found = store.images(backbone, dataset).backbone
    assert "are damaged" in caplog.text
    assert encoder.images_seen == 48
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_images__an_unreadable_image_is_named(store: FeatureStore, tmp_path: Path) -> None:
    folder = tmp_path / "broken" / "val" / "c0"
    folder.mkdir(parents=True)
    (folder / "bad.png").write_bytes(b"no image")
    reader = {"kind": "image_folder", "root": "broken"}
    dataset = open_dataset(squares_task(reader=reader).reader, "val", tmp_path)
    with pytest.raises(DataError, match=r"Cannot read .*bad\.png"):
        store.images(make_backbone(ColourEncoder()), dataset)
    assert not stored(store, "json")


@pytest.mark.parametrize(
    "other",
    [
        lambda: make_backbone(ColourEncoder(), name="retrained"),
        lambda: make_backbone(BlindEncoder()),
    ],
)
def test_images__other_weights_are_other_features(
    other: Callable[[], features.Backbone], store: FeatureStore, dataset: Dataset
) -> None:
    store.images(make_backbone(ColourEncoder()), dataset)
    store.images(other(), dataset)
    assert len(stored(store, "json")) == 2


def test_texts__distinct_ones_are_encoded_once_shortest_first(store: FeatureStore) -> None:
    encoder = ColourEncoder()
    backbone = make_backbone(encoder)
    found = store.texts(backbone, ["a red square", "blue", "a red square", "red"])
    assert encoder.texts_seen == ["red", "blue", "a red square"]
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[0], found[3])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    again = store.texts(backbone, ["red", "a red square", "blue"])
    assert len(encoder.texts_seen) == 3
    torch.testing.assert_close(again[2], found[1])


def test_note__says_what_is_stored(store: FeatureStore, dataset: Dataset) -> None:
    store.images(make_backbone(ColourEncoder()), dataset)
    (note,) = stored(store, "json")
    content = json.loads(note.read_text())
    assert content["shapes"]["joint"] == [24, 3]
    assert content["images"] == [0, 24]
    assert content["data"] == dataset.fingerprint


def test_write__no_space_damages_nothing(
    store: FeatureStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(feature_files, "save_file", full)
        with pytest.raises(StorageError, match="No space left on the device"):
            store.images(make_backbone(ColourEncoder()), dataset)
    assert not stored(store, "json")
    assert len(store.images(make_backbone(ColourEncoder()), dataset).backbone) == 24


def test_write__safetensors_own_error_of_a_full_disk_is_a_refusal(
    store: FeatureStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "Error while serializing: I/O error: No space left on device (os error 28)"

    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError(message)

    monkeypatch.setattr(feature_files, "save_file", full)
    with pytest.raises(StorageError, match="No space left on the device"):
        store.images(make_backbone(ColourEncoder()), dataset)
    message = "something else"
    with pytest.raises(SafetensorError, match="something else"):
        store.images(make_backbone(ColourEncoder()), dataset)
