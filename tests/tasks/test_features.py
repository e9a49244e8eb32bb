from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskclip_bench.data.readers import Dataset, open_dataset
from maskclip_bench.errors import DataError, StorageError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import features
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
    monkeypatch.setattr(features, "PART_SIZE", 10)
    monkeypatch.setattr(features, "REPORT_SECONDS", 0.0)
    encoder = ColourEncoder()
    backbone = make_backbone(encoder)

    def stop_late(stage: str, done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.images(backbone, dataset, progress=stop_late)
    assert len(stored(store, "safetensors")) == 2
    found = store.images(backbone, dataset)
    assert encoder.images_seen == 24 + 4
    assert len(found.backbone) == 24


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
        patch.setattr(features, "save_file", full)
        with pytest.raises(StorageError, match="No space left on the device"):
            store.images(make_backbone(ColourEncoder()), dataset)
    assert not stored(store, "json")
    assert len(store.images(make_backbone(ColourEncoder()), dataset).backbone) == 24
