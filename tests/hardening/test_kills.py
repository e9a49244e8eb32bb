"""`run` under kills, signals and a disk that refuses: afterwards the same records, to the bit."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from maskclip_bench.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STORAGE
from maskclip_bench.results.records import RecordStore
from tests.hardening.harness import SECONDS, Run, command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ENCODER = """
import torch


class Encoder(torch.nn.Module):
    preprocess = {"image_size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(48, 12, generator=generator))

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, 4).flatten(1) @ self.weight
"""

RUN = ("run", "-b", "python:killed_encoder:Encoder", "-t", "*/birds")


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine with one encoder and one data set of three classes."""
    root = tmp_path_factory.mktemp("birds")
    generator = np.random.default_rng(0)
    for split, number in (("train", 12), ("val", 8)):
        for label, name in enumerate(("finch", "heron", "wren")):
            folder = root / "data" / "birds" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(40 * label, 120 + 40 * label, (20, 20, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    task = {
        "display_name": "Birds",
        "world": "real",
        "reader": {"kind": "image_folder", "root": "birds"},
        "splits": {"train": "train", "test": "val"},
        "protocols": {"knn": {}, "linear_probe": {}, "few_shot": {}},
        "obtain": "drawn by a test",
    }
    (root / "catalogue" / "tasks").mkdir(parents=True)
    (root / "catalogue" / "tasks" / "birds.yaml").write_text(yaml.safe_dump(task))
    (root / "killed_encoder.py").write_text(ENCODER)
    return {
        "PYTHONPATH": os.pathsep.join((str(root), os.environ.get("PYTHONPATH", ""))),
        "MASKCLIP_BENCH_DATA": str(root / "data"),
        "MASKCLIP_BENCH_CATALOGUE": str(root / "catalogue"),
        "MASKCLIP_BENCH_CACHE": str(root / "cache"),
    }


@pytest.fixture(scope="module")
def expected(birds: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a run gives that nothing disturbs."""
    root = tmp_path_factory.mktemp("undisturbed")
    command(*RUN, "-w", str(root), **birds).assert_clean(0)
    found = numbers(root)
    assert len(found) == 3
    return found


def numbers(workspace: Path) -> dict[str, object]:
    """Values, intervals and hash of the outcomes of every record."""
    store = RecordStore(workspace / "records")
    found: dict[str, object] = {}
    for path in store.paths():
        record = store.check(path, values=True)
        assert record.error is None, record.error
        values = {name: metric.value for name, metric in record.metrics.items()}
        found[f"{record.cell.protocol}/{record.cell.dataset}"] = (values, record.outcomes_sha256)
    return found


def start(
    workspace: Path, variables: dict[str, str], before: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "maskclip_bench", *RUN, "-w", str(workspace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1", **variables},
        preexec_fn=before,
    )


def wait_for_files(process: subprocess.Popen[bytes], workspace: Path, number: int) -> None:
    """Until the run has written that many files, or has ended."""
    until = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < until:
        if workspace.is_dir() and sum(path.is_file() for path in workspace.rglob("*")) >= number:
            return
        time.sleep(0.002)


def ended(process: subprocess.Popen[bytes]) -> Run:
    output, errors = process.communicate(timeout=SECONDS)
    texts = (output.decode("utf-8", "replace"), errors.decode("utf-8", "replace"))
    return Run(RUN, process.returncode, *texts)


def test_run__killed_at_twelve_moments(
    birds: dict[str, str], expected: dict[str, object], tmp_path: Path
) -> None:
    draw = random.Random(0)
    workspace = tmp_path / "w"
    killed = 0
    for attempt in range(12):
        process = start(workspace, birds)
        wait_for_files(process, workspace, draw.randrange(1, 16))
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        killed += ended(process).code == -signal.SIGKILL
        whole = {name: value for name, value in numbers(workspace).items()}
        assert whole.items() <= expected.items()
        if attempt % 3 == 2:
            shutil.rmtree(workspace, ignore_errors=True)
    assert killed >= 6
    command(*RUN, "-w", str(workspace), **birds).assert_clean(0)
    assert numbers(workspace) == expected
    assert not list(workspace.rglob("*.tmp*"))
    command("verify", str(workspace), **birds).assert_clean(0)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_run__signals_end_it_with_a_word(
    number: str, birds: dict[str, str], expected: dict[str, object], tmp_path: Path
) -> None:
    workspace = tmp_path / "w"
    process = start(workspace, birds)
    wait_for_files(process, workspace, 3)
    process.send_signal(getattr(signal, number))
    ended(process).assert_clean(EXIT_INTERRUPTED, 0)
    assert numbers(workspace).items() <= expected.items()
    command(*RUN, "-w", str(workspace), **birds).assert_clean(0)
    assert numbers(workspace) == expected


@pytest.mark.parametrize("size", [0, 300, 3000])
def test_run__a_disk_that_refuses(
    size: int, birds: dict[str, str], expected: dict[str, object], tmp_path: Path
) -> None:
    workspace = tmp_path / "w"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    without_cache = {**birds, "MASKCLIP_BENCH_CACHE": str(tmp_path / "none")}
    ended(start(workspace, without_cache, limit)).assert_clean(EXIT_STORAGE, EXIT_FAILED)
    assert numbers(workspace).items() <= expected.items()
    command(*RUN, "-w", str(workspace), **birds).assert_clean(0)
    assert numbers(workspace) == expected
