from __future__ import annotations

import builtins
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from maskclip_bench.errors import ConfigError, MissingDependencyError
from maskclip_bench.modeling import DEMO_VIT
from maskclip_bench.pretrain import launch, trainer
from maskclip_bench.pretrain.launch import (
    SlurmTraining,
    launch_here,
    preemption_signal,
    rank_device,
    submit_to_slurm,
)
from maskclip_bench.training.checkpoint import CheckpointStore
from maskclip_bench.training.logs import read_log


class FakeExecutor:
    """What `submitit.AutoExecutor` is asked for; `submit` does not call anything."""

    last: FakeExecutor

    def __init__(self, folder: str, cluster: str | None = None, **arguments: Any) -> None:
        self.folder, self.arguments = folder, arguments
        self.cluster = cluster or "slurm"
        self.parameters: dict[str, Any] = {}
        FakeExecutor.last = self

    def update_parameters(self, **parameters: Any) -> None:
        if "nonsense" in parameters:
            raise NameError("Unknown argument 'nonsense'")
        self.parameters.update(parameters)

    def submit(self, function: Any) -> Any:
        self.submitted = pickle.loads(pickle.dumps(function))
        return SimpleNamespace(job_id="17")


class FakeEnvironment:
    """Describes a group of one process."""

    def export(self, *, overwrite: bool) -> None:
        assert overwrite
        os.environ.update({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"})


@pytest.fixture
def submitit(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = SimpleNamespace(
        AutoExecutor=FakeExecutor,
        helpers=SimpleNamespace(
            TorchDistributedEnvironment=FakeEnvironment,
            DelayedSubmission=lambda function: ("again", function),
        ),
    )
    monkeypatch.setitem(sys.modules, "submitit", module)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")  # given back after the test
    return module


def test_launch_here__trains(tiny: ModuleType, tmp_path: Path, data_root: Path) -> None:
    recipe = tiny.tiny_recipe(num_pairs=16)
    model = launch_here(recipe, output=tmp_path, data_root=data_root, device="cpu")
    assert (model / "open_clip_config.json").is_file()


def test_submit__what_slurm_is_asked_for(
    tiny: ModuleType, tmp_path: Path, submitit: SimpleNamespace
) -> None:
    job = submit_to_slurm(
        tiny.tiny_recipe(),
        output=tmp_path / "run",
        data_root=tmp_path,
        workspace=tmp_path,
        options=["nodes=2", "slurm_partition=gpu", "--timeout-min=60"],
    )
    assert job.job_id == "17"
    executor = FakeExecutor.last
    assert executor.folder == str(tmp_path / "run" / "slurm")
    assert executor.arguments == {"slurm_max_num_timeout": 100}
    assert executor.parameters == {
        "name": "pretrain-tiny_clip",
        "nodes": 2,
        "gpus_per_node": 8,
        "tasks_per_node": 8,
        "cpus_per_task": 10,
        "timeout_min": 60,
        "slurm_partition": "gpu",
        "slurm_signal_delay_s": 120,
    }
    assert executor.submitted.output == str(tmp_path / "run")
    assert executor.submitted.workspace == str(tmp_path)


def test_slurm_training__runs_and_is_put_back(
    tiny: ModuleType, tmp_path: Path, data_root: Path, submitit: SimpleNamespace
) -> None:
    recipe = tiny.tiny_recipe(num_pairs=32)
    submit_to_slurm(recipe, output=tmp_path / "run", data_root=data_root, device="cpu")
    training: SlurmTraining = FakeExecutor.last.submitted
    assert training.checkpoint() == ("again", training)
    assert training() == str(tmp_path / "run" / "model")


def test_slurm_training__stops_at_the_signal_then_asks_submitit(
    tiny: ModuleType,
    tmp_path: Path,
    data_root: Path,
    submitit: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The checkpoint is there when submitit's handler is called, which alone may requeue."""
    handled: list[list[str]] = []

    def handler(number: int, frame: Any) -> None:
        assert number == signal.SIGUSR1
        handled.append([path.name for path in (tmp_path / "run" / "checkpoints").iterdir()])

    told = trainer.Report.__call__

    def preempt(report: Any, state: Any, *, force: bool) -> None:
        told(report, state, force=force)
        if state.step == 1:
            signal.raise_signal(signal.SIGUSR1)

    recipe = tiny.tiny_recipe(checkpoint={"every_steps": 100})
    submit_to_slurm(recipe, output=tmp_path / "run", data_root=data_root, device="cpu")
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(trainer.Report, "__call__", preempt)
            with pytest.raises(SystemExit) as ended:  # another task than the first: no error
                FakeExecutor.last.submitted()
        assert ended.value.code == 0
        assert handled == [["step_00000002.pt"]]
        FakeExecutor.last.submitted.checkpoint()[1]()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_preemption_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUBMITIT_PREEMPT_SIGNAL", raising=False)
    assert preemption_signal() == signal.SIGUSR2
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    assert preemption_signal() == signal.SIGUSR1


@pytest.mark.slow
def test_submit__preempted_job_goes_on(tiny: ModuleType, tmp_path: Path, data_root: Path) -> None:
    """submitit itself, on this machine: signal, checkpoint, requeue, and the rest of the run."""
    pytest.importorskip("submitit")
    vision = {"timm_model": DEMO_VIT}  # the job knows no model of the tests
    recipe = tiny.tiny_recipe(
        model={"image_size": 48, "vision": vision},
        num_pairs=16 * 200,
        checkpoint={"every_steps": 10_000},
    )
    folder = tmp_path / "run"
    job = submit_to_slurm(
        recipe,
        output=folder,
        data_root=data_root,
        device="cpu",
        options=["gpus_per_node=0", "timeout_min=5"],
        cluster="local",
    )
    try:
        while len(read_log(folder)) < 3:
            assert not job.done(), job.stderr()
            time.sleep(0.01)
        controller = job._process.pid
        children = Path(f"/proc/{controller}/task/{controller}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGUSR2)
        assert job.result() == str(folder / "model")
    finally:
        job.cancel(check=False)
        job._process.wait(timeout=30)
    assert [line["step"] for line in read_log(folder)] == list(range(1, 201))
    early, last = CheckpointStore(folder / "checkpoints", keep=2).paths()
    assert last.name == "step_00000200.pt"
    assert 3 <= int(early.stem.removeprefix("step_")) < 200
    assert "Requeued job" in job.stderr() + job.stdout()


def test_submit__without_submitit(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "submitit":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(MissingDependencyError, match=r"pip install 'maskclip-bench\[slurm\]'"):
        submit_to_slurm(tiny.tiny_recipe(), output=tmp_path, data_root=tmp_path)


def test_submit__bad_options(tiny: ModuleType, tmp_path: Path, submitit: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match=r"'nodes' is not an option for Slurm. Write key=value"):
        submit_to_slurm(tiny.tiny_recipe(), output=tmp_path, data_root=tmp_path, options=["nodes"])
    with pytest.raises(ConfigError, match="submitit refuses the options: Unknown argument"):
        submit_to_slurm(
            tiny.tiny_recipe(), output=tmp_path, data_root=tmp_path, options=["nonsense=1"]
        )


def test_submit__no_slurm_here(
    tiny: ModuleType, tmp_path: Path, submitit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Local(FakeExecutor):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.cluster = "local"

    monkeypatch.setattr(submitit, "AutoExecutor", Local)
    with pytest.raises(ConfigError, match=r"there is no Slurm on this machine"):
        submit_to_slurm(tiny.tiny_recipe(), output=tmp_path, data_root=tmp_path)


def test_rank_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(launch, "resolve_device", lambda name: torch.device(name))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert rank_device("cuda") == torch.device("cuda", 3)
    assert rank_device("cuda:1") == torch.device("cuda", 1)
