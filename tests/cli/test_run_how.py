"""Options of `run`: what they come to, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskclip_bench.cli.run_how import How, how_of, together
from maskclip_bench.errors import ConfigError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.sharding import ShardedStore

PLAIN: dict[str, Any] = {
    "precision": "fp32",
    "batch_size": None,
    "workers": None,
    "retry_failed": False,
    "launcher": "here",
    "slurm": None,
}


def test_options(tmp_path: Path) -> None:
    how = how_of(**{**PLAIN, "precision": "bf16", "batch_size": "auto", "workers": 3})
    assert (how.options().image_batch, how.options().workers) == ("auto", 3)
    assert how.arguments() == ["--precision", "bf16", "--batch-size", "auto", "--workers", "3"]
    assert how_of(**PLAIN, validate=True).arguments() == ["--precision", "fp32", "--validate"]
    assert how_of(**{**PLAIN, "batch_size": "32"}).options().image_batch == 32
    assert how_of(**PLAIN).options().image_batch is None
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (how.num_jobs(None, cuda), how.num_jobs(5, cpu)) == (1, 5)
    place = Workspace(root=tmp_path, data=tmp_path)
    sharded = How(sharded=True)
    assert isinstance(sharded.store(place), ShardedStore)
    assert sharded.num_jobs(5, cpu) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"precision": "fp16"}, "--precision 'fp16': choose fp32 or bf16"),
        ({"batch_size": "many"}, "--batch-size 'many': give a number from 1 on, or auto"),
        ({"batch_size": "0"}, "--batch-size '0': give a number"),
        ({"launcher": "cloud"}, "No launcher 'cloud'. Choose one of: here, slurm"),
        ({"slurm": ["nodes=2"]}, "--slurm goes with --launcher slurm"),
    ],
)
def test_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        how_of(**{**PLAIN, **changed})


def test_torchrun_and_slurm_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    how = how_of(**{**PLAIN, "launcher": "slurm"})
    place = Workspace(root=tmp_path, data=tmp_path)
    with (
        pytest.raises(ConfigError, match="submits jobs; start it without torchrun"),
        together(how, place, "cpu"),
    ):
        pass


@pytest.mark.slow
def test_precision_and_failed_cells(tiny_suite: Any) -> None:
    """bf16 is another cell; a record in fp32 does not stand for it, and is not changed back."""
    words = ("run", "--backbone", "untrained", "--task", "knn/*")
    first = tiny_suite.run(*words)
    assert first.returncode == 0, first.stderr
    record = next((tiny_suite.workspace / "records/untrained").glob("knn__*.json"))
    plain = json.loads(record.read_text())
    assert "precision" not in plain["fingerprints"]
    second = tiny_suite.run(*words, "--precision", "bf16")
    assert second.returncode == 0, second.stderr
    in_bf16 = json.loads(record.read_text())
    assert in_bf16["fingerprints"]["precision"] == "bfloat16"
    assert in_bf16["details"]["precision"] == "bfloat16"
    third = tiny_suite.run(*words, "--retry-failed")
    assert third.returncode == 0, third.stderr
    assert "0 cells: 0 recorded, 0 to measure" in third.stderr
    assert "No cell of these has a failed record" in third.stderr
    assert json.loads(record.read_text()) == in_bf16
