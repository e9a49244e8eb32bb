"""Measuring a model in memory: the one place that makes a protocol's context."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.results.records import RecordStore
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.measure import measure, measure_record

from .conftest import BlindEncoder, ColourEncoder, captions_task, make_backbone, squares_task


def test_measure__a_model_in_memory_writes_nothing(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    found = measure(
        PROTOCOLS["linear_probe"], squares_task(), make_backbone(ColourEncoder()),
        workspace=workspace,
    )  # fmt: skip
    assert found.metrics["top1_accuracy"].value == 1.0
    assert set(tmp_path.rglob("*")) == before


def test_measure__opens_the_default_workspace(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKCLIP_BENCH_DATA", str(data_root))
    found = measure(PROTOCOLS["knn"], squares_task(), make_backbone(ColourEncoder()))
    assert found.metrics["top1_accuracy"].value == 1.0


@pytest.mark.parametrize("limit", [12, 10**9])
def test_measure__limit_takes_images_of_every_split(limit: int, workspace: Workspace) -> None:
    found = measure(
        PROTOCOLS["knn"], squares_task(), make_backbone(ColourEncoder()),
        workspace=workspace, limit=limit,
    )  # fmt: skip
    assert len(found.outcomes) == min(limit, 24)
    assert found.details["num_train"] == min(limit, 48)
    assert sorted(set(found.outcomes["label"])) == [0, 1, 2, 3, 4, 5]
    assert found.budget == {"limit": limit}


@pytest.mark.parametrize(
    ("protocol", "limit", "message"),
    [
        ("knn", 0, "limit is 0; give at least 1"),
        ("knn", -3, "limit is -3"),
        ("knn", 2.5, r"limit is 2\.5; .* a whole number"),
        ("knn", True, "limit is True"),
        ("segmentation", 4, "segmentation trains on whole splits, so limit=4"),
        ("zero_shot_classification", None, "toy: Toy has no text tower, which Zero-shot needs"),
    ],
)
def test_measure__refuses_what_cannot_be(
    protocol: str, limit: int | None, message: str, workspace: Workspace
) -> None:
    backbone = make_backbone(BlindEncoder())
    with pytest.raises(ConfigError, match=message):
        measure(PROTOCOLS[protocol], squares_task(), backbone, workspace=workspace, limit=limit)


def test_measure__one_class_and_one_image_and_none(tmp_path: Path, data_root: Path) -> None:
    """One class is always right, by chance too; an empty split is one clear error."""
    root = tmp_path / "one"
    for split in ("train", "val"):
        (root / split / "c0").mkdir(parents=True)
        source = data_root / "squares" / split / "c0/0.png"
        (root / split / "c0/0.png").write_bytes(source.read_bytes())
    reader = {"kind": "image_folder", "root": "one"}
    task = squares_task(reader=reader, protocols={"knn": {}, "few_shot": {"shots": 1}})
    place = Workspace(root=tmp_path / "w", data=tmp_path)
    backbone = make_backbone(ColourEncoder())
    for protocol in ("knn", "few_shot"):
        found = measure(PROTOCOLS[protocol], task, backbone, workspace=place)
        metric = found.metrics[found.primary_metric]
        assert (metric.value, metric.chance_level) == (1.0, 1.0)
    probe = task.model_copy(update={"protocols": {"linear_probe": {}}})
    with pytest.raises(DataError, match="of 1 images 0 can be held out"):
        measure(PROTOCOLS["linear_probe"], probe, backbone, workspace=place)


def test_measure__an_empty_split_is_one_error(tmp_path: Path, data_root: Path) -> None:
    root = tmp_path / "empty"
    for split in ("train", "val"):
        (root / split / "c0").mkdir(parents=True)
    (root / "train/c0/0.png").write_bytes((data_root / "squares/train/c0/0.png").read_bytes())
    task = squares_task(reader={"kind": "image_folder", "root": "empty"}, protocols={"knn": {}})
    place = Workspace(root=tmp_path / "w", data=tmp_path)
    with pytest.raises(DataError, match=r"empty|no image"):
        measure(PROTOCOLS["knn"], task, make_backbone(ColourEncoder()), workspace=place)


def test_measure_record__carries_what_tables_need_and_can_be_saved(workspace: Workspace) -> None:
    backbone = make_backbone(ColourEncoder())
    record, outcomes = measure_record(
        PROTOCOLS["retrieval"], captions_task(), backbone, workspace=workspace
    )
    assert record.status == "ok"
    assert record.protocol_title == "Retrieval"
    assert record.metrics["image_to_text_recall@1"].label == "I→T R@1"
    assert record.table_columns == ["image_to_text_recall@1", "text_to_image_recall@1"]
    assert record.cell.backbone == "toy"
    assert {"weights", "preprocess", "data", "settings", "versions"} <= set(record.fingerprints)
    store = RecordStore(workspace.records)
    store.save(record, outcomes)
    loaded = store.load("toy", "retrieval", "captions")
    assert loaded is not None
    assert loaded.primary.value == 1.0
    assert loaded.metrics["mean_recall@1"].half_width is not None
    limited, _ = measure_record(
        PROTOCOLS["retrieval"], captions_task(), backbone, workspace=workspace, limit=3
    )
    assert limited.cell.cell_fingerprint != record.cell.cell_fingerprint
    assert limited.fingerprints["limit"] == "3"
