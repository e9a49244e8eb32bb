"""Cells as jobs: one a row and data set, through submitit's executors for this machine."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from maskclip_bench.errors import ConfigError, MissingDependencyError
from maskclip_bench.progress import Unit
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.cell import Column, PlannedCell, Row
from maskclip_bench.tasks.cluster import (
    ClusterJob,
    cluster_jobs,
    parsed_options,
    submit,
    wait_for,
)
from maskclip_bench.tasks.plan import Plan

from .conftest import ColourEncoder, captions_task, make_backbone, squares_task
from .test_execution import Quiet


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path / "workspace", data=tmp_path)


def test_one_job_for_each_row_and_data_set(place: Workspace) -> None:
    backbone = make_backbone(ColourEncoder())
    columns = [
        Column(PROTOCOLS["knn"], squares_task()),
        Column(PROTOCOLS["retrieval"], captions_task()),
        Column(PROTOCOLS["few_shot"], squares_task()),
    ]
    row = Row(backbone.name, backbone.declaration, seed=1)
    plan = Plan(cells=[PlannedCell(row, column, None) for column in columns])
    jobs = cluster_jobs(plan, place, device="cuda", extra=["--precision", "bf16"])
    assert [job.unit.label for job in jobs] == ["Toy (seed 1): squares", "Toy (seed 1): captions"]
    assert jobs[0].command[1:] == (
        "-m", "maskclip_bench", "run", "--backbone", "toy", "--seeds", "1",
        "--workspace", str(place.root), "--device", "cuda", "--precision", "bf16",
        "--task", "knn/squares", "--task", "few_shot/squares",
    )  # fmt: skip


def job(code: str) -> ClusterJob:
    return ClusterJob(Unit(code, code, 1.0), (sys.executable, "-c", code))


def test_jobs_run_and_fail_alone(place: Workspace, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    written = tmp_path / "done"
    jobs = [
        job(f"open({str(written)!r}, 'w').write('yes')"),
        job("raise SystemExit('no data')"),
    ]
    submitted = submit(jobs, place, options=["timeout_min=1"], cluster="local")
    listener = Quiet()
    wait_for(jobs, submitted, listener, sleep=lambda seconds: time.sleep(0.1))
    assert written.read_text() == "yes"
    assert [(key, ok) for key, ok, _ in listener.notes] == [
        (jobs[0].unit.key, True),
        (jobs[1].unit.key, False),
    ]
    assert "log:" in listener.notes[1][2]


def test_refused(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match="there is no Slurm on this machine"):
        submit([], place)
    with pytest.raises(ConfigError, match="submitit refuses the options"):
        submit([], place, options=["colour=red"], cluster="local")
    with pytest.raises(ConfigError, match=r"'nodes' is not an option for Slurm. Write key=value"):
        parsed_options(["nodes"])
    assert parsed_options(["--slurm-partition=gpu", "nodes=2"]) == {
        "slurm_partition": "gpu",
        "nodes": 2,
    }
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingDependencyError, match="--launcher slurm needs submitit: "):
        submit([], place)
