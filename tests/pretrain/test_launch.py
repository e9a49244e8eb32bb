from __future__ import annotations

import builtins
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from maskclip_bench.errors import ConfigError, MissingDependencyError
from maskclip_bench.pretrain import launch
from maskclip_bench.pretrain.launch import (
    SlurmTraining,
    launch_here,
    rank_device,
    submit_to_slurm,
)


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


def test_slurm_training__runs_and_is_put_back(
    tiny: ModuleType, tmp_path: Path, data_root: Path, submitit: SimpleNamespace
) -> None:
    recipe = tiny.tiny_recipe(num_pairs=32)
    submit_to_slurm(recipe, output=tmp_path / "run", data_root=data_root, device="cpu")
    training: SlurmTraining = FakeExecutor.last.submitted
    assert training.checkpoint() == ("again", training)
    assert training() == str(tmp_path / "run" / "model")


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
