"""Two processes give the records of one: no image twice, none missing, the same numbers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maskclip_bench.results.records import RecordStore
from maskclip_bench.tasks import sharding

from .conftest import COLOURS

ENCODER = """
import os
from pathlib import Path
import torch

class Eyes:
    preprocess = {"image_size": 8, "mean": (0.0,) * 3, "std": (1.0,) * 3}

    def encode_image(self, images):
        log = os.environ.get("SEEN")
        if log and len(images) != 3:  # 3: the probe
            with Path(log).open("a") as file:
                file.write(f"{len(images)}\\n")
        if os.environ.get("BROKEN_RANK") == os.environ.get("OWN_RANK", "0") and len(images) != 3:
            raise ValueError("no eyes")
        return images.mean(dim=(2, 3)) - 0.5

    def forward_features(self, images):
        return images.flatten(1)[:, ::32]

    def encode_text(self, texts):
        return torch.tensor([[len(t) / 9, t.count("e") + 0.1, 0.3] for t in texts])

def make():
    return Eyes()
"""

COMMAND = """
import os
os.environ["OWN_RANK"] = os.environ.get("RANK", "0")
from maskclip_bench.tasks import features
features.IMAGE_BATCH = 10
from maskclip_bench.cli.app import run
run(["run", "--backbone", "toy", "--task", "squares", "--device", "cpu", "--jobs", "1"])
"""


@pytest.fixture
def catalogue(tmp_path: Path, data_root: Path) -> Path:
    (tmp_path / "backbones").mkdir()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "eyes.py").write_text(ENCODER)
    (tmp_path / "backbones/toy.yaml").write_text(
        "display_name: Toy\nworld: real\nsource: {python: 'eyes:make'}\n"
    )
    (tmp_path / "tasks/squares.yaml").write_text(
        "display_name: Squares\nworld: real\n"
        "reader: {kind: image_folder, root: squares, classes: classes.json}\n"
        "splits: {train: train, test: val}\n"
        "prompt_sets: {two: {templates: ['a {} square', '{}']}}\n"
        "protocols: {zero_shot_classification: {prompts: two}, knn: {}, linear_probe: {}}\n"
        "obtain: Draw them.\n"
    )
    return tmp_path


def start(catalogue: Path, data_root: Path, workspace: str, ranks: int, **more: str) -> Any:
    """Run the suite on some processes -> (exit codes, their error outputs)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(catalogue), *sys.path]),
            "MASKCLIP_BENCH_CATALOGUE": str(catalogue),
            "MASKCLIP_BENCH_DATA": str(data_root),
            "MASKCLIP_BENCH_WORKSPACE": str(catalogue / workspace),
            "SEEN": str(catalogue / f"{workspace}_seen_{rank}"),
            **more,
        }
        if ranks > 1:
            group = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": port}
            environment |= {key: str(value) for key, value in group.items()}
            environment["MASTER_ADDR"] = "127.0.0.1"
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", COMMAND],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    told = [process.communicate(timeout=240) for process in processes]
    return [process.returncode for process in processes], told


def records(catalogue: Path, workspace: str) -> dict[str, Any]:
    store = RecordStore(catalogue / workspace / "records")
    found = {}
    for path in store.paths():
        record = store.check(path)
        outcomes = store.outcomes(record)
        metrics = {name: metric.value for name, metric in record.metrics.items()}
        found[path.name] = (metrics, record.fingerprints, outcomes.to_json())
    return found


def seen(catalogue: Path, workspace: str, rank: int) -> list[int]:
    path = catalogue / f"{workspace}_seen_{rank}"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.slow
def test_two_processes_give_the_records_of_one(catalogue: Path, data_root: Path) -> None:
    code, told = start(catalogue, data_root, "one", 1)
    assert code == [0], told
    codes, told = start(catalogue, data_root, "two", 2)
    assert codes == [0, 0], told
    one, two = records(catalogue, "one"), records(catalogue, "two")
    assert len(one) == 3
    assert one == two
    both = [seen(catalogue, "two", rank) for rank in range(2)]
    assert all(both)  # each rank computed something
    assert sum(map(sum, both)) == sum(seen(catalogue, "one", 0)) == (8 + 4) * len(COLOURS)


@pytest.mark.slow
def test_what_fails_on_a_rank_fails_the_cell(catalogue: Path, data_root: Path) -> None:
    codes, told = start(catalogue, data_root, "broken", 2, BROKEN_RANK="1")
    assert codes == [1, 0], told
    failed = json.loads(next((catalogue / "broken/records").rglob("knn__squares.json")).read_text())
    assert failed["status"] == "failed"
    assert "rank 1: ValueError: no eyes" in failed["error"]["message"]


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not sharding.under_torchrun()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sharding.under_torchrun()
