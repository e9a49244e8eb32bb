"""Protocols that train through the backbone: what they share, on colours, without a subprocess."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskclip_bench.backbones import load_backbone
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.data import readers
from maskclip_bench.errors import ConfigError, DataError, JobError
from maskclip_bench.results.measurement import Measurement
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, TaskDeclaration, trained_jobs
from maskclip_bench.tasks.finetuning import job as train_job
from maskclip_bench.tasks.finetuning.folder import TrainFolder
from maskclip_bench.tasks.measure import measure
from maskclip_bench.testing import tiny_images
from tests.tasks.finetuning.tiny import tiny_backbone

SMALL = {"global_batch_size": 6, "micro_batch_size": 6, "epochs": 2}
ROW = BackboneDeclaration(
    name="random",
    display_name="Random",
    world="demo",
    source={"timm": "vit_demo_patch8_48", "random_init": True},
)


def finetuned(task: TaskDeclaration, **settings: Any) -> TaskDeclaration:
    declared = {"preset": "small", "options": SMALL, **settings}
    return task.model_copy(update={"protocols": {"finetune": declared}})


def run(task: TaskDeclaration, root: Path, **more: Any) -> Measurement:
    workspace = Workspace(root=root / "ws", data=root)
    backbone = more.pop("backbone", None) or tiny_backbone()
    return measure(PROTOCOLS["finetune"], task, backbone, workspace=workspace, **more)


def test_run__a_model_in_memory_is_trained_here(colours: TaskDeclaration, tmp_path: Path) -> None:
    stages: list[str] = []
    found = run(
        finetuned(colours, also_test={"again": "train"}),
        tmp_path,
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert {"training", "testing test", "testing train"} <= set(stages)
    assert found.preset.startswith("small+own-")
    assert found.primary_metric == "top1_accuracy"
    assert found.metrics["top1_accuracy"].chance_level == pytest.approx(1 / 3)
    outcomes = found.outcomes
    assert len(outcomes) == 12 + 18
    assert outcomes["top1_accuracy"].notna().sum() == 12
    assert outcomes["top1_accuracy_again"].notna().sum() == 18
    assert outcomes["sample_id"].iloc[12].startswith("again/")
    assert found.details["steps"] == 6
    assert found.details["recipe"]["epochs"] == 2
    assert set(found.details["data"]) == {"train", "test", "again"}


def test_run__one_training_serves_several_test_splits(
    colours: TaskDeclaration, tmp_path: Path
) -> None:
    run(finetuned(colours), tmp_path)
    stages: list[str] = []
    other = colours.model_copy(
        update={"name": "other", "splits": {"train": "train", "test": "train"}}
    )
    run(finetuned(other), tmp_path, progress=lambda stage, done, total: stages.append(stage))
    assert set(stages) == {"testing train"}
    changed = finetuned(colours, options={**SMALL, "lr": 1e-5})
    run(changed, tmp_path, progress=lambda stage, done, total: stages.append(stage))
    assert "training" in stages


def in_this_process(
    command: Sequence[str], *, environment: Mapping[str, str], on_poll: Any, **others: Any
) -> None:
    """What `run_job` does, without a subprocess."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            if name.startswith("MASKCLIP"):
                patch.setenv(name, value)
        patch.setattr(train_job, "end_with_parent", lambda: None)
        code = train_job.main([command[-1]])
    on_poll()
    if code:
        raise JobError(f"exit code {code}")


def test_run__as_a_job(
    colours: TaskDeclaration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_jobs, "run_job", in_this_process)
    workspace = Workspace(root=tmp_path / "ws", data=tmp_path)
    backbone = load_backbone(ROW, workspace=workspace)
    told: list[tuple[str, int, int]] = []
    found = run(
        finetuned(colours),
        tmp_path,
        backbone=backbone,
        progress=lambda *state: told.append(state),
    )
    (folder,) = (workspace.jobs / "random").glob("finetune-*")
    message = json.loads((folder / "job.json").read_text())
    assert message["weights"] == backbone.weights_fingerprint
    assert told[0] == ("starting", 0, 100)
    assert told[-1] == ("testing test 12/12", 100, 100)
    assert found.metrics["top1_accuracy"].value >= 1 / 3

    # A row whose weights changed meanwhile, and a message that is none.
    for path in folder.glob("result_*"):
        path.unlink()
    changed = replace(backbone, weights_fingerprint="other")
    with pytest.raises(JobError, match="exit code 3"):
        run(finetuned(colours), tmp_path, backbone=changed)
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(DataError, match=r"none\.json is no job file"):
        train_job.read_train_job(tmp_path / "none.json")


def test_run__results_that_cannot_be_read(
    colours: TaskDeclaration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_job, "run_here", lambda *given, **more: None)
    with pytest.raises(JobError, match=r"cannot be read\. Delete that folder"):
        run(finetuned(colours), tmp_path)


def test_run__options_that_do_not_fit(colours: TaskDeclaration, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'epoch'.*Did you mean 'epochs'"):
        run(finetuned(colours, options={"epoch": 1}), tmp_path)
    with pytest.raises(ConfigError, match=r"has 18 images, and one step takes 64"):
        run(finetuned(colours, options={}), tmp_path)
    with pytest.raises(ConfigError, match="the head zero_shot begins as the text classifier"):
        head = {**SMALL, "head": "zero_shot", "pooling": "joint"}
        run(finetuned(colours, options=head), tmp_path)


def test_tests__other_sets_and_suffixes(
    colours: TaskDeclaration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_images(tmp_path / "others").model_copy(update={"name": "others"})
    monkeypatch.setattr(trained_jobs, "load_task_declaration", lambda name: other)
    found = run(finetuned(colours, other_sets=["others"]), tmp_path)
    assert found.outcomes["top1_accuracy_others"].notna().sum() == 12
    with pytest.raises(ConfigError, match="tests two splits as 'others'"):
        run(finetuned(colours, other_sets=["others"], also_test={"others": "train"}), tmp_path)
    (tmp_path / "others" / "test" / "violet").mkdir()
    image = next((tmp_path / "others/test/blue").iterdir())
    (tmp_path / "others/test/violet/0.png").write_bytes(image.read_bytes())
    readers.forget()
    with pytest.raises(DataError, match=r"has 4 classes and .* has 3: a classifier of the one"):
        run(finetuned(colours, other_sets=["others"]), tmp_path)


def test_fingerprints__cover_every_tested_split(colours: TaskDeclaration, tmp_path: Path) -> None:
    protocol, workspace = PROTOCOLS["finetune"], Workspace(root=tmp_path, data=tmp_path)
    plain = protocol.data_fingerprint(finetuned(colours), workspace)
    more = protocol.data_fingerprint(finetuned(colours, also_test={"x": "train"}), workspace)
    assert plain != more
    assert protocol.preset_version(finetuned(colours)) == 1


def test_left_out__a_model_that_is_no_vit(colours: TaskDeclaration) -> None:
    protocol = PROTOCOLS["finetune"]
    hub = BackboneDeclaration(
        name="hub", display_name="Hub", world="real", source={"huggingface": "a/b"}
    )
    task = finetuned(colours, preset="mae", options={})
    assert protocol.left_out(task, hub) == "Hub is no timm or open_clip model, which mae needs"
    assert protocol.left_out(task, ROW) is None
    assert protocol.left_out(finetuned(colours), hub) is None
    wise = finetuned(colours, preset="wise_ft", options={}, prompts="class_name_only")
    assert protocol.left_out(wise, ROW) == "Random has no text tower, which Finetune needs"


def test_report__follows_the_job(tmp_path: Path) -> None:
    folder = TrainFolder(tmp_path)
    told: list[tuple[str, int, int]] = []

    class Context:
        progress = staticmethod(lambda *state: told.append(state))

    context: Any = Context()
    trained_jobs._report(context, folder)
    folder.progress.write_text('{"stage": "training", "done": 5, "total": 10}')
    trained_jobs._report(context, folder)
    folder.progress.write_text("{")
    trained_jobs._report(context, folder)
    assert told == [("training 5/10", 42, 100)]
    assert np.isclose(trained_jobs.TRAINING_SHARE, 0.85)
