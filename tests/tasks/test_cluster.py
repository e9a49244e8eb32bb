"""Cells as jobs: one a row and data set, through submitit's executors for this machine."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

from maskclip_bench import storage
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
from maskclip_bench.tasks.plan import Plan, make_plan
from maskclip_bench.tasks.suite import SuiteDeclaration

from .conftest import ColourEncoder, captions_task, make_backbone, squares_task
from .test_execution import Quiet
from .test_sharding import catalogue as catalogue  # a fixture
from .test_sharding import records, start


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


class Job:
    """What submitit knows of a job that was submitted by another process."""

    state = "RUNNING"
    asked: ClassVar[list[str]] = []

    def __init__(self, folder: Path, job_id: str) -> None:
        self.job_id = job_id
        self.asked.append(job_id)

    def done(self) -> bool:
        return False


def test_a_job_that_still_runs_is_not_submitted_again(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit")
    jobs = [job("print(1)"), job("print(2)")]
    first = submit(jobs, place, options=["timeout_min=1"], cluster="local")
    for handle in first:
        handle.result()
    monkeypatch.setattr(submitit.LocalExecutor, "job_class", Job)
    again = submit(jobs, place, options=["timeout_min=1"], cluster="local")
    assert [handle.job_id for handle in again] == [handle.job_id for handle in first] == Job.asked
    (place.root / "slurm/submitted.json").write_text("damaged")
    monkeypatch.undo()
    assert submit(jobs[:1], place, cluster="local")[0].result() is not None


@pytest.mark.parametrize("state", ["UNKNOWN", "COMPLETED", "CANCELLED by 7", "TIMEOUT", ""])
def test_a_job_that_ended_is_submitted_again(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    submitit = pytest.importorskip("submitit")
    (place.root / "slurm").mkdir(parents=True)
    jobs = [job("print(1)")]
    name = storage.fingerprint(list(jobs[0].command))
    (place.root / "slurm/submitted.json").write_text(json.dumps({name: "17"}))
    submitted: list[object] = []

    class Ended(Job):
        pass

    Ended.state = state

    def fake(self: object, function: object) -> Job:
        submitted.append(function)
        return Job(place.root, "18")

    monkeypatch.setattr(submitit.LocalExecutor, "job_class", Ended)
    monkeypatch.setattr(submitit.AutoExecutor, "submit", fake)
    assert [handle.job_id for handle in submit(jobs, place, cluster="local")] == ["18"]
    assert len(submitted) == 1
    assert json.loads((place.root / "slurm/submitted.json").read_text()) == {name: "18"}


@pytest.mark.slow
def test_cells_as_jobs_give_the_records_of_one_run(
    catalogue: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    code, told = start(catalogue, data_root, "here", 1)
    assert code == [0], told
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(catalogue), *sys.path]))
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", str(catalogue))
    monkeypatch.setenv("MASKCLIP_BENCH_DATA", str(data_root))
    monkeypatch.syspath_prepend(str(catalogue))
    there = Workspace(root=catalogue / "there", data=data_root)
    suite = SuiteDeclaration(description="", backbones=["toy"], tasks=["*/squares"])
    plan = make_plan(suite, there)
    assert len(plan.open_cells) == 3
    jobs = cluster_jobs(plan, there, device="cpu", extra=["--jobs", "1"])
    assert len(jobs) == 1
    listener = Quiet()
    submitted = submit(jobs, there, options=["timeout_min=5"], cluster="local")
    wait_for(jobs, submitted, listener, sleep=lambda seconds: time.sleep(0.2))
    assert [ok for _, ok, _ in listener.notes] == [True], listener.notes
    assert records(catalogue, "there") == records(catalogue, "here")
    assert make_plan(suite, there).open_cells == []


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
