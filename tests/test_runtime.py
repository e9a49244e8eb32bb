from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from maskclip_bench import __version__, runtime
from maskclip_bench.errors import ConfigError
from maskclip_bench.runtime import (
    Workspace,
    configure_threads,
    default_num_threads,
    derive_seed,
    free_memory,
    provenance,
    resolve_device,
    threads_of_job,
)


def test_workspace__argument_before_environment_before_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Workspace.open().root == tmp_path / "workspace"
    monkeypatch.setenv(runtime.WORKSPACE_VARIABLE, str(tmp_path / "env"))
    assert Workspace.open().root == tmp_path / "env"
    assert Workspace.open(tmp_path / "given").root == tmp_path / "given"


def test_workspace__data_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Workspace.open(tmp_path).data == tmp_path / "data"
    monkeypatch.setenv(runtime.DATA_VARIABLE, str(tmp_path / "sets"))
    assert Workspace.open(tmp_path).data == tmp_path / "sets"


def test_workspace__folders_and_nothing_created(tmp_path: Path) -> None:
    place = Workspace.open(tmp_path / "w")
    folders = [place.pretrain, place.features, place.jobs, place.records, place.tables]
    assert [folder.name for folder in folders] == [
        "pretrain",
        "features",
        "jobs",
        "records",
        "tables",
    ]
    assert not place.root.exists()


def test_derive_seed__known_and_independent() -> None:
    assert derive_seed(0, "scene", 1) == derive_seed(0, "scene", 1)
    seeds = {derive_seed(seed, *purpose) for seed in (0, 1) for purpose in (("a",), ("b",), (1, 2))}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(derive_seed(0))


def test_resolve_device__auto_and_cpu() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected


def test_resolve_device__no_such_device() -> None:
    with pytest.raises(ConfigError, match=r"'gpu' is not a device: .* Use auto, cpu or cuda"):
        resolve_device("gpu")


def test_resolve_device__cuda_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"torch sees none. Use --device cpu"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


def test_threads__argument_before_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert configure_threads() == 1
        assert configure_threads(2) == 2
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert configure_threads() == default_num_threads()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "num_jobs", "expected"),
    [
        (None, 1, 8), (None, 2, 4), (None, 3, 2), (None, 20, 1),
        ("1", 1, 1), ("2", 1, 2), ("2", 8, 1), ("16", 1, 8), (" 2,1 ", 1, 2),
        ("", 1, 8), ("0", 1, 8), ("-1", 1, 8), ("all", 1, 8),
    ],
)  # fmt: skip
def test_threads_of_job__share_of_the_cores_or_what_is_asked_for(
    asked: str | None, num_jobs: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "default_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads_of_job(num_jobs) == expected


def test_default_num_threads__without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_num_threads() == 1


def test_provenance__what_is_needed_to_trust_a_number() -> None:
    facts = provenance("cpu")
    assert facts["maskclip_bench"] == __version__
    assert facts["libraries"]["torch"] == torch.__version__.split("+")[0] or facts["libraries"]
    assert facts["hardware"]["device"] == "cpu"
    assert facts["time"].endswith("+00:00")
    assert {"git_commit", "python", "system", "command"} <= set(facts)


def test_git_commit__outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "package" / "runtime.py"))
    assert runtime._git_commit() is None


def test_git_commit__broken_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").touch()
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "package" / "runtime.py"))
    assert runtime._git_commit() is None


def test_peak_memory__of_this_process() -> None:
    assert 2**20 < runtime.peak_memory(torch.device("cpu")) < 2**40


def test_device_kind__of_a_cpu() -> None:
    assert runtime.device_kind("cpu") == runtime.device_kind(torch.device("cpu")) == "cpu"


def test_free_memory__of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = free_memory(torch.device("cpu"))
    assert 2**20 < found < 2**50
    monkeypatch.setattr(Path, "read_text", lambda *given, **named: "MemTotal: 9 kB\n")
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50  # where /proc does not say
    text = "MemTotal: 9 kB\nMemAvailable:      2048 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda *given, **named: text)
    assert free_memory(torch.device("cpu")) == 2**21
