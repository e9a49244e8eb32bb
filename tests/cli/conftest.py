"""A whole suite that runs in seconds: a tiny demo world, two recipes, one data set, one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from maskclip_bench.data.demo import DemoSizes, prepare_demo

SIZES = DemoSizes(
    pretrain=96, objects_train=3, objects_val=1, objects_val_ood=1, objects_tune=1,
    captions_test=6, captions_val=2, scenes_training=2, scenes_validation=1,
    scenes_validation_ood=1, instances_train=2, instances_val=1, instances_val_ood=1,
)  # fmt: skip

RECIPE = """
_base_: {base}
num_pairs: 320
global_batch_size: 32
data: {{source: {{path: "tiny/pretrain/shards/*.tar"}}}}
optimizer: {{warmup_steps: 2}}
checkpoint: {{every_steps: 4}}
"""

BACKBONE = """
display_name: {title}
world: demo
source: {{recipe: {recipe}}}
"""

UNTRAINED = """
display_name: untrained
world: demo
source: {recipe: tiny/clip, random_init: true}
"""

TASK = """
display_name: tiny objects
world: demo
reader: {kind: image_folder, root: tiny/objects, classes: classes.json}
splits: {train: train, test: val}
prompt_sets: {one: {templates: ["a {}"]}}
protocols:
  zero_shot_classification: {prompts: one}
  knn: {}
obtain: made by the tests
"""

SUITE = """
description: two rows and two columns
backbones: [tiny_clip, tiny_maskclip]
tasks: ["*/tiny_objects"]
tables: [tiny]
"""

TABLE = """
title: Tiny
world: demo
baseline: tiny_clip
columns:
  - {title: zero-shot, task: zero_shot_classification/tiny_objects, metric: top1_accuracy}
  - {title: kNN, task: knn/tiny_objects, metric: top1_accuracy}
rows:
  - {name: CLIP, backbone: tiny_clip}
  - {name: MaskCLIP, backbone: tiny_maskclip}
"""


@dataclass(frozen=True)
class TinySuite:
    """A workspace and a catalogue for `maskclip-bench run --suite tiny`."""

    workspace: Path
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "maskclip_bench", *arguments]

    def run(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=self.workspace.parent,
            capture_output=True,
            text=True,
            timeout=600,
            **options,
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            cwd=self.workspace.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def scores(self) -> dict[str, float]:
        """Cell -> value of its primary metric, from the record files."""
        found = {}
        for path in sorted((self.workspace / "records").glob("*/*.json")):
            record = json.loads(path.read_text())
            assert record["status"] == "ok", record["error"]
            metric = record["metrics"][record["primary_metric"]]
            found[f"{path.parent.name}/{path.stem}"] = metric["value"]
        return found


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a demo world of a few images, as `tiny/`."""
    root = tmp_path_factory.mktemp("data")
    prepare_demo(root, sizes=SIZES, num_processes=1).rename(root / "tiny")
    return root


@pytest.fixture(scope="session")
def tiny_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's catalogue that declares the tiny suite."""
    from maskclip_bench.data_files import shipped_root

    root = tmp_path_factory.mktemp("catalogue")
    files = {"tasks/tiny_objects.yaml": TASK, "configs/suites/tiny.yaml": SUITE}
    files["configs/tables/tiny.yaml"] = TABLE
    for method, title in (("clip", "CLIP"), ("maskclip", "MaskCLIP")):
        base = shipped_root() / f"configs/pretrain/demo/{method}.yaml"
        files[f"configs/pretrain/tiny/{method}.yaml"] = RECIPE.format(base=base)
        files[f"backbones/tiny_{method}.yaml"] = BACKBONE.format(
            title=title, recipe=f"tiny/{method}"
        )
    files["backbones/tiny_untrained.yaml"] = UNTRAINED
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def tiny_suite(tmp_path: Path, tiny_data: Path, tiny_catalogue: Path) -> TinySuite:
    return make_tiny_suite(tmp_path / "workspace", tiny_data, tiny_catalogue)


def make_tiny_suite(workspace: Path, data: Path, catalogue: Path) -> TinySuite:
    environment = {
        **os.environ,
        "MASKCLIP_BENCH_CATALOGUE": str(catalogue),
        "MASKCLIP_BENCH_DATA": str(data),
        "MASKCLIP_BENCH_WORKSPACE": str(workspace),
        "COLUMNS": "200",
    }
    return TinySuite(workspace, environment)


@dataclass(frozen=True)
class Outcome:
    """Exit code and what a command printed."""

    code: int
    output: str
    errors: str


@pytest.fixture
def in_process(
    tmp_path: Path,
    tiny_data: Path,
    tiny_catalogue: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Run a command in this process, with the tiny catalogue and an empty workspace."""
    import logging
    import signal
    import warnings

    from maskclip_bench import cli

    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", str(tiny_catalogue))
    monkeypatch.setenv("MASKCLIP_BENCH_DATA", str(tiny_data))
    monkeypatch.setenv("MASKCLIP_BENCH_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Outcome:
        handlers = signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]
        try:
            with warnings.catch_warnings():
                cli.main(list(arguments))
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handlers[0])
            logging.getLogger().handlers[:] = handlers[1]
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
