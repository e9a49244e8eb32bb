"""Segmentation as a job on a small demo world, the metrics by hand, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.dense_job import DenseFolder
from maskclip_bench.data import readers
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.errors import ConfigError, DataError, JobError, MissingDependencyError
from maskclip_bench.results.records import Cell, measured_record
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import dense_jobs
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.dense_outcomes import check_agreement
from maskclip_bench.tasks.protocols.base import ProtocolContext
from maskclip_bench.tasks.protocols.segmentation import (
    MMSEG_ROUNDING,
    Segmentation,
    segmentation_metrics,
)
from tests.tasks.protocols.dense_world import ROW, dense_context

CONFIG = "configs/mmseg/demo/vit-demo_frozen-upernet_1xb4-500_demo-scenes-144x144.py"


def task(**settings: object) -> TaskDeclaration:
    options = {"train_cfg.max_iters": 5, "default_hooks.checkpoint.interval": 5}
    return TaskDeclaration(
        name="small_scenes",
        display_name="Small scenes",
        world="demo",
        reader={"kind": "ade20k", "root": "demo/scenes", "classes": "classes.json"},
        splits={"train": "training", "test": "validation"},
        protocols={
            "segmentation": {
                "configs": {"*": CONFIG},
                "preset": "demo_frozen_upernet",
                "options": options,
                **settings,
            }
        },
        obtain="-",
    )


def context(root: Path, declared: TaskDeclaration, **changes: object) -> ProtocolContext:
    return dense_context(root, "segmentation", declared, **changes)


def test_run__trains_tests_both_splits_and_goes_on(world: Path) -> None:
    pytest.importorskip("mmseg")
    stages: list[str] = []
    given = context(
        world,
        task(also_test={"ood": "validation_ood"}),
        progress=lambda stage, done, total: stages.append(stage),
    )
    measurement = Segmentation().run(given)
    (folder,) = (world / "jobs" / "random").glob("segmentation__*")
    log = (folder / "job.log").read_text()

    # The record's numbers are the toolbox's.
    scores = json.loads((folder / "scores_validation.json").read_text())
    assert f"mIoU: {scores['mIoU']:.4f}" in log
    assert measurement.metrics["mean_iou"].value == pytest.approx(scores["mIoU"] / 100, abs=6e-5)
    assert measurement.metrics["mean_class_accuracy"].value == pytest.approx(
        scores["mAcc"] / 100, abs=6e-5
    )
    assert measurement.metrics["pixel_accuracy"].value == pytest.approx(
        scores["aAcc"] / 100, abs=6e-5
    )
    ood = json.loads((folder / "scores_validation_ood.json").read_text())
    assert measurement.metrics["mean_iou_ood"].value == pytest.approx(ood["mIoU"] / 100, abs=6e-5)
    assert {"thing_mean_iou", "stuff_mean_iou_ood"} <= set(measurement.metrics)
    assert len(measurement.outcomes) == 12
    assert measurement.details["mmcv_operators"] in ("torchvision stand-in", "compiled mmcv")
    assert "mmcv operators: " in log
    assert any(stage.startswith("t") for stage in stages)

    cell = Cell(
        backbone="random",
        seed=0,
        protocol="segmentation",
        dataset="small_scenes",
        world="demo",
        task_version=1,
        cell_fingerprint="x",
    )
    record = measured_record(cell, measurement, fingerprints={}, provenance={}, seconds=1.0)
    interval = record.metrics["mean_iou"]
    assert interval.low is not None and interval.high is not None
    assert interval.low <= interval.value <= interval.high
    assert interval.num_samples == 6

    # A run that was interrupted in testing does not train again; one that is whole does nothing.
    (folder / "scores_validation_ood.json").unlink()
    again = Segmentation().run(given)
    assert again.metrics == measurement.metrics
    log = (folder / "job.log").read_text()
    assert log.count("Saving checkpoint at 5 iterations") == 1
    Segmentation().run(given)
    assert (folder / "job.log").read_text() == log

    # Scores that do not belong to the outcomes are noticed; a broken file too.
    (folder / "scores_validation.json").write_text(json.dumps({**scores, "mIoU": 99.0}))
    with pytest.raises(DataError, match=r"mIoU on validation: the outcomes give .* says 0\.99"):
        Segmentation().run(given)
    (folder / "scores_validation.json").write_text("{")
    with pytest.raises(JobError, match=r"results of 'validation' in .* cannot be read"):
        Segmentation().run(given)


def test_run__masks_of_another_size(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "data" / "demo" / "scenes", tmp_path / "data" / "demo" / "scenes")
    mask = next((tmp_path / "data/demo/scenes/annotations/validation").iterdir())
    Image.fromarray(np.ones((32, 64), np.uint8)).save(mask)
    with pytest.raises(DataError, match=r"1 of 6 masks .* not of their image's size.*64 x 32"):
        Segmentation().run(context(tmp_path, task()))
    mask.unlink()
    readers.forget()
    with pytest.raises(DataError, match=r"1 of 6 images .* (has|have) no mask"):
        Segmentation().run(context(tmp_path, task()))


def test_run__mask_value_that_is_no_class(world: Path, tmp_path: Path) -> None:
    """Refused before training, as by the patch protocols."""
    shutil.copytree(world / "data" / "demo" / "scenes", tmp_path / "data" / "demo" / "scenes")
    mask = next((tmp_path / "data/demo/scenes/annotations/training").iterdir())
    values = np.array(Image.open(mask))
    values[0, 0] = 40
    Image.fromarray(values).save(mask)
    with pytest.raises(DataError, match=r"no mask of 29 classes: it has the value 40"):
        Segmentation().run(context(tmp_path, task()))


def test_run__no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"small_scenes: no folder .*demo/scenes\. See `obtain`"):
        Segmentation().run(context(tmp_path, task()))


def test_run__job_that_fails_ends_with_its_log(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; sys.exit('error: a checkpoint of another architecture')"
    monkeypatch.setattr(dense_jobs, "missing_packages", lambda toolbox: [])
    monkeypatch.setattr(
        dense_jobs, "job_command", lambda job_file, context: [sys.executable, "-c", code]
    )
    with pytest.raises(JobError, match=r"^a checkpoint of another architecture \(exit code 1; "):
        Segmentation().run(context(world, task(options={"a.b": 1})))


def test_left_out__says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mmseg")
    protocol = Segmentation()
    assert protocol.left_out(task(), ROW) is None
    other = task(configs={"ViT-B/16": CONFIG})
    assert protocol.left_out(other, ROW) == (
        "there is no mmseg config for ViT-demo, only for ViT-B/16; a row may bring its own as "
        "openmmlab: {segmentation: {config: ...}}"
    )
    wish = ROW.model_copy(update={"openmmlab": {"segmentation": {"config": CONFIG}}})
    assert protocol.left_out(other, wish) is None
    hub = BackboneDeclaration(
        name="hub", display_name="Hub", world="demo", source={"huggingface": "a/b"}, arch="ViT-demo"
    )
    assert "is no timm or open_clip model" in str(protocol.left_out(task(), hub))
    monkeypatch.setattr(dense_jobs, "missing_packages", lambda toolbox: ["mmcv"])
    said = str(protocol.left_out(task(), ROW))
    assert "mmseg is not installed: " in said
    assert "pip install" in said


def test_run__without_openmmlab_or_config(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"has no config for 'ViT-demo' and no '\*'"):
        Segmentation().run(context(world, task(configs={"ViT-B/16": CONFIG})))
    monkeypatch.setattr(dense_jobs, "missing_packages", lambda toolbox: ["mmcv", "mmseg"])
    with pytest.raises(MissingDependencyError, match=r"needs mmcv, mmseg: .*pip install"):
        Segmentation().run(context(world, task()))


def test_fingerprints__follow_the_configs(world: Path, tmp_path: Path) -> None:
    base, config = tmp_path / "base.py", tmp_path / "config.py"
    base.write_text("a = 1\n")
    config.write_text('_base_ = ["base.py"]\n')
    first = dense_jobs.config_fingerprint(config)
    base.write_text("a = 2\n")
    assert dense_jobs.config_fingerprint(config) != first
    workspace = Workspace(root=world, data=world / "data")
    assert "configs" in Segmentation().task_fingerprints(task(), workspace)
    assert Segmentation().preset_version(task(preset_version=3)) == 3


def test_fingerprints__hold_every_tested_split(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "data" / "demo" / "scenes", tmp_path / "data" / "demo" / "scenes")
    workspace = Workspace(root=tmp_path, data=tmp_path / "data")
    declared = task(also_test={"ood": "validation_ood"})
    protocol = Segmentation()
    plain = protocol.data_fingerprint(task(), workspace)
    both = protocol.data_fingerprint(declared, workspace)
    assert plain != both
    mask = next((tmp_path / "data/demo/scenes/annotations/validation_ood").iterdir())
    mask.write_bytes(mask.read_bytes() + b"\0")
    readers.forget()
    assert protocol.data_fingerprint(task(), workspace) == plain
    assert protocol.data_fingerprint(declared, workspace) != both


@pytest.mark.parametrize("split", ["validation", "validation_ood"])
def test_run__other_test_images_are_another_job(
    world: Path, tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world / "data" / "demo" / "scenes", tmp_path / "data" / "demo" / "scenes")
    monkeypatch.setattr(dense_jobs, "missing_packages", lambda toolbox: [])
    monkeypatch.setattr(Segmentation, "_run", write_results)
    given = context(tmp_path, task(also_test={"ood": "validation_ood"}))
    for _ in range(2):
        Segmentation().run(given)
    assert len([path for path in (tmp_path / "jobs/random").iterdir() if path.is_dir()]) == 1
    image = next((tmp_path / "data/demo/scenes/images" / split).iterdir())
    image.write_bytes(image.read_bytes() + b"\0")
    readers.forget()
    Segmentation().run(given)
    assert len([path for path in (tmp_path / "jobs/random").iterdir() if path.is_dir()]) == 2


def write_results(
    self: Segmentation,
    context: ProtocolContext,
    folder: DenseFolder,
    config: Path,
    opened: Mapping[str, Dataset],
    tested: Sequence[str],
    options: dict[str, Any],
) -> dict[str, Any]:
    """What a job leaves: two images of the 29 classes, all of them right."""
    folder.path.mkdir(parents=True, exist_ok=True)
    counts = np.ones((2, 29), np.int64)
    for name in tested:
        folder.scores(name).write_text('{"mIoU": 100.0}')
        np.savez(
            folder.outcomes(name),
            sample_id=np.array(["0", "1"]),
            intersection=counts,
            predicted=counts,
            labelled=counts,
        )
    self._message(context, folder, config, opened, tested, options).write()
    return {}


def test_own_recipe__changes_fingerprint_and_preset(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, workspace = Segmentation(), Workspace(root=world, data=world / "data")
    settings = protocol.settings_of(task())

    def row(**own: object) -> BackboneDeclaration:
        return ROW.model_copy(update={"openmmlab": {"segmentation": own}})

    usual = protocol.cell_fingerprints(task(), ROW, workspace)
    assert usual == protocol.task_fingerprints(task(), workspace)
    assert protocol.cell_fingerprints(task(), row(config=CONFIG), workspace) == usual
    config = tmp_path / "own.py"
    config.write_text("a = 1\n")
    presets = {dense_jobs.preset_name(settings, ROW, "segmentation")}
    assert presets == {"demo_frozen_upernet"}
    for own in ({"config": str(config)}, {"options": {"a": 1}}, {"options": {"a": 2}}):
        found = protocol.cell_fingerprints(task(), row(**own), workspace)
        assert {key: value for key, value in found.items() if key != "own_recipe"} == usual
        presets.add(dense_jobs.preset_name(settings, row(**own), "segmentation"))
    assert len(presets) == 4
    assert all(name.startswith("demo_frozen_upernet") for name in presets)
    before = protocol.cell_fingerprints(task(), row(config=str(config)), workspace)
    config.write_text("a = 2\n")
    assert protocol.cell_fingerprints(task(), row(config=str(config)), workspace) != before
    with pytest.raises(ConfigError, match=r"(?s)random: openmmlab\.segmentation .*mean 'config'"):
        protocol.left_out(task(), row(confg=CONFIG))

    # The record says so, and the options reach the job.
    monkeypatch.setattr(dense_jobs, "missing_packages", lambda toolbox: [])
    monkeypatch.setattr(Segmentation, "_run", write_results)
    given = context(world, task())
    assert protocol.run(given).preset == "demo_frozen_upernet"
    own_row = replace(given.backbone, declaration=row(options={"model.neck.x": 1}))
    measurement = protocol.run(replace(given, backbone=own_row))
    assert measurement.preset in {
        dense_jobs.preset_name(settings, row(options={"model.neck.x": 1}), "segmentation")
    } - {"demo_frozen_upernet"}
    jobs = [json.loads(path.read_text()) for path in (world / "jobs/random").rglob("job.json")]
    assert any(job["options"].get("model.neck.x") == 1 for job in jobs)


def test_rounding__leaves_room_for_sums_in_float32() -> None:
    """Two digits of a percentage round by up to 0.5e-4; mmseg's sums are a little off before."""
    check_agreement("mIoU", 0.476354, 0.4763, tolerance=MMSEG_ROUNDING)
    with pytest.raises(
        DataError, match=r"the outcomes give 0\.476410 and the toolbox says 0\.4763"
    ):
        check_agreement("mIoU", 0.47641, 0.4763, tolerance=MMSEG_ROUNDING)


def test_environment__device(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = context(world, task())
    assert dense_jobs.job_environment(given)["CUDA_VISIBLE_DEVICES"] == "-1"
    second = replace(given, device=torch.device("cuda:1"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert dense_jobs.job_environment(second)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert dense_jobs.job_environment(second)["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    command = dense_jobs.job_command(Path("job.json"), replace(given, device=torch.device("cuda")))
    assert "--nproc_per_node=4" in command
    assert "torch.distributed.run" not in dense_jobs.job_command(Path("job.json"), given)


def test_metrics__by_hand() -> None:
    # Two images, classes a, b, c; c occurs nowhere. Pixels right, predicted, labelled:
    counts = {
        "intersection": np.array([[3, 1, 0], [2, 0, 0]]),
        "predicted": np.array([[4, 2, 0], [3, 1, 0]]),
        "labelled": np.array([[4, 2, 0], [3, 1, 0]]),
    }
    metrics, _ = segmentation_metrics(counts, ["stuff", "thing", "thing"])
    assert metrics["mean_iou"].value == pytest.approx((5 / 9 + 1 / 5) / 2)
    assert metrics["mean_class_accuracy"].value == pytest.approx((5 / 7 + 1 / 3) / 2)
    assert metrics["pixel_accuracy"].value == pytest.approx(6 / 10)
    assert metrics["thing_mean_iou"].value == pytest.approx(1 / 5)
    assert metrics["stuff_mean_iou"].value == pytest.approx(5 / 9)
