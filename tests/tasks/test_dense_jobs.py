"""A dense cell is a message to a job: nothing is loaded here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskclip_bench.backbones import loading
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.dense_job import DenseFolder, read_job
from maskclip_bench.backbones.unloaded import unloaded_backbone
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import dense_jobs, execution
from maskclip_bench.tasks.cell import Column, PlannedCell, Row
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.execution import Execution
from maskclip_bench.tasks.measure import measure
from maskclip_bench.tasks.plan import Plan
from maskclip_bench.tasks.protocols.segmentation import Segmentation
from tests.backbones.openmmlab.conftest import CLASSES, write_scenes
from tests.tasks.test_execution import Quiet

CONFIG = "configs/mmseg/demo/vit-demo_frozen-upernet_1xb4-500_demo-scenes-144x144.py"
ROW = BackboneDeclaration(
    name="random",
    display_name="Random",
    world="demo",
    source={"timm": "vit_demo_patch8_48", "random_init": True},
    arch="ViT-demo",
)
TASK = TaskDeclaration(
    name="small_scenes",
    display_name="Small scenes",
    world="demo",
    reader={"kind": "ade20k", "root": "scenes", "classes": "classes.json"},
    splits={"train": "training", "test": "validation"},
    protocols={"segmentation": {"configs": {"*": CONFIG}, "preset": "p"}},
    obtain="-",
)


def leave_results(command: list[str], **options: Any) -> None:
    """In place of `run_job`: the files of a job that got all pixels right."""
    folder = DenseFolder(Path(command[-1]).parent)
    counts = np.ones((2, len(CLASSES)), np.int64)
    folder.scores("validation").write_text('{"mIoU": 100.0}')
    folder.loaded_row.write_text('{"mean": [0, 0, 0], "std": [1, 1, 1], "weights_state": "w"}')
    np.savez(
        folder.outcomes("validation"),
        sample_id=np.array(["0", "1"]),
        intersection=counts,
        predicted=counts,
        labelled=counts,
    )


def test_cell__loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job loads the row; its hash is found without building it."""
    write_scenes(tmp_path / "data" / "scenes", size=16, counts=(2, 2))
    loads: list[str] = []
    for module in (execution, loading):
        monkeypatch.setattr(module, "load_backbone", lambda *given, **more: loads.append("row"))
    monkeypatch.setattr(loading, "_load", lambda *given: loads.append("model"))
    monkeypatch.setattr(dense_jobs, "missing_packages", lambda toolbox: [])
    monkeypatch.setattr(dense_jobs, "run_job", leave_results)
    workspace = Workspace(root=tmp_path, data=tmp_path / "data")
    cell = PlannedCell(Row(ROW.name, ROW), Column(Segmentation(), TASK), recorded=None, asked=True)
    plan = Plan(cells=[cell])
    listener = Quiet()
    done = Execution(
        plan, workspace, device=torch.device("cpu"), num_jobs=1, listener=listener
    ).run()
    assert loads == []
    assert [record.status for record in done.measured] == ["ok"], listener.notes
    assert done.measured[0].details["weights_state"] == "w"


@pytest.mark.parametrize("own", [True, False])
def test_validation__on_the_own_split_or_the_test_split_and_of_no_other_cell(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "data" / "scenes", size=16, counts=(2, 2))
    if own:
        for part in ("images", "annotations"):
            shutil.copytree(
                tmp_path / "data/scenes" / part / "training",
                tmp_path / "data/scenes" / part / "held_out",
            )
    splits = {**TASK.splits, **({"validation": "held_out"} if own else {})}
    task = TASK.model_copy(update={"splits": splits})
    monkeypatch.setattr(dense_jobs, "missing_packages", lambda toolbox: [])
    monkeypatch.setattr(dense_jobs, "run_job", leave_results)
    workspace = Workspace(root=tmp_path, data=tmp_path / "data")
    folders = {}
    for validate in (False, True):
        backbone = unloaded_backbone(ROW, workspace=workspace, device=torch.device("cpu"))
        measure(Segmentation(), task, backbone, workspace=workspace, validate=validate)
        (folder,) = (tmp_path / "jobs").glob("*/segmentation__*")
        job = read_job(folder / "job.json")
        assert (job.validate_on is not None) == validate
        folders[validate] = folder
        DenseFolder(folder).scores("validation").unlink()
    assert folders[True] == folders[False]
    assert job.validate_on is not None
    assert job.validate_on.name == ("held_out" if own else "validation")
    assert [split.name for split in job.tests] == ["validation"]


@pytest.mark.parametrize("number", [1, 2])
def test_cells__of_one_row_hand_on_maps_by_a_file_of_the_run(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "data" / "scenes", size=16, counts=(2, 2))
    told: list[str | None] = []

    def job(command: list[str], **options: Any) -> None:
        told.append(read_job(Path(command[-1])).maps)
        if told[-1] is not None:
            Path(told[-1]).write_text("maps")
        leave_results(command, **options)

    monkeypatch.setattr(dense_jobs, "missing_packages", lambda toolbox: [])
    monkeypatch.setattr(dense_jobs, "run_job", job)
    workspace = Workspace(root=tmp_path, data=tmp_path / "data")
    cells = []
    for turn in range(number):
        options = {"train_cfg.max_iters": 10 + turn}
        settings = {"configs": {"*": CONFIG}, "preset": "p", "options": options}
        task = TASK.model_copy(
            update={"name": f"scenes_{turn}", "protocols": {"segmentation": settings}}
        )
        row = Row(ROW.name, ROW)
        cells.append(PlannedCell(row, Column(Segmentation(), task), recorded=None, asked=True))
    done = Execution(
        Plan(cells=cells), workspace, device=torch.device("cpu"), num_jobs=1, listener=Quiet()
    ).run()
    assert [record.status for record in done.measured] == ["ok"] * number
    assert len(set(told)) == 1
    assert (told[0] is not None) == (number > 1)
    assert told[0] is None or not Path(told[0]).exists()
