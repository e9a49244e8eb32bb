"""A small study in a catalogue of its own, and folders that look like finished runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskclip_bench import data_files
from maskclip_bench.runtime import Workspace
from maskclip_bench.study.declaration import StudyDeclaration, load_study
from maskclip_bench.study.runs import StudyRun

SIZES = {
    "pretrain": 96, "shard": 32, "objects_train": 3, "objects_val": 1, "objects_val_ood": 1,
    "objects_tune": 1, "objects_val_small": 1, "objects_val_occluded": 1, "captions_test": 6,
    "captions_val": 3, "scenes_training": 2, "scenes_validation": 1, "scenes_validation_ood": 1,
    "instances_train": 1, "instances_val": 1, "instances_val_ood": 1,
}  # fmt: skip

STUDY: dict[str, Any] = {
    "title": "A small study",
    "suite": "tiny",
    "recipes": "tiny/{row}",
    "backbones": "tiny-{row}",
    "world": {"folder": "demo_long", "pairs_of_pass": 64, "sizes": SIZES},
    "seeds": {0: ["noto"], 1: ["fluent", "fluent-flat"]},
    "stages": [
        {"name": "main", "rows": ["clip", "maskclip"], "seeds": [0, 1]},
        {"name": "more", "rows": ["clip"], "seeds": [0]},
    ],
    "tuning": {
        "seed": 9,
        "held_out": ["fxemoji"],
        "first": "clip",
        "score": [
            {"task": "zero_shot_classification/demo_long_objects", "metric": "top1_accuracy"},
            {"task": "retrieval/demo_long_captions", "metric": "image_to_text_recall@1"},
        ],
        "tries": {
            "clip": [{"optimizer.lr": 1e-3}, {"optimizer.lr": 2e-3}],
            "maskclip": [{"method.mlm_weight": 0.05}, {"method.mlm_weight": 0.5}],
        },
    },
    "curve": {
        "show": [
            {
                "title": "Zero-shot",
                "task": "zero_shot_classification/demo_long_objects",
                "metric": "top1_accuracy",
            }
        ],
        "choose_on": [
            {"task": "zero_shot_classification/demo_long_objects_tune", "metric": "top1_accuracy"}
        ],
    },
    "baseline": "clip",
}

RECIPE = """
_base_: {base}
epochs: 4
data: {{source: {{path: "demo_long/pretrain/shards/pretrain-{{000000..000001}}.tar"}}}}
global_batch_size: 32
optimizer: {{warmup_steps: 2}}
checkpoint: {{every_steps: 4, keep: 10}}
log: {{every_steps: 2, tensorboard: false}}
evaluation: {{held_out: {{batch_size: 16, every_steps: 4, num_pairs: 32,
  source: {{kind: webdataset, path: "demo_long/pretrain/shards/pretrain-000002.tar"}}}}}}
"""

BACKBONE = """
display_name: {row}
world: demo
source: {{recipe: tiny/{row}}}
"""

SUITE = """
description: rows of the small study
backbones: [tiny-clip, tiny-maskclip]
tasks: [zero_shot_classification/demo_long_objects]
tables: [tiny]
"""

TABLE: dict[str, Any] = {
    "title": "Small",
    "world": "demo",
    "data_by_seed": True,
    "baseline": "tiny-clip",
    "columns": [
        {
            "group": "Zero-shot",
            "title": "val",
            "task": "zero_shot_classification/demo_long_objects",
            "metric": "top1_accuracy",
        }
    ],
    "rows": [
        {"name": "CLIP", "backbone": "tiny-clip"},
        {"name": "MaskCLIP", "backbone": "tiny-maskclip"},
    ],
}


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue with the small study, its recipes, rows, suite and table."""
    root = tmp_path / "catalogue"
    shipped = data_files.shipped_root() / "configs" / "pretrain" / "demo_long"
    files = {"configs/studies/small.yaml": yaml.safe_dump(STUDY, sort_keys=False)}
    for row in ("clip", "maskclip"):
        recipe = RECIPE.format(base=shipped / f"{row}.yaml")
        files[f"configs/pretrain/tiny/{row}.yaml"] = recipe
        files[f"backbones/tiny-{row}.yaml"] = BACKBONE.format(row=row)
    files["configs/suites/tiny.yaml"] = SUITE
    files["configs/tables/tiny.yaml"] = yaml.safe_dump(TABLE, sort_keys=False)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv(data_files.CATALOGUE_VARIABLE, str(root))
    return root


@pytest.fixture
def study(catalogue: Path) -> StudyDeclaration:
    return load_study("small")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


Finish = Callable[..., Path]


@pytest.fixture
def finish(workspace: Workspace) -> Finish:
    """Make a run's folder look as if it were trained (and measured at its checkpoints)."""

    def make(
        run: StudyRun,
        *,
        curve: Mapping[int, Mapping[str, float]] | None = None,
        log: list[dict[str, Any]] | None = None,
        steps: tuple[int, ...] = (4, 8),
    ) -> Path:
        folder = run.folder(workspace)
        for name in ("model", "checkpoints"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        origin = {"recipe_fingerprint": run.fingerprint}
        (folder / "model" / "provenance.json").write_text(json.dumps(origin))
        for step in steps:
            (folder / "checkpoints" / f"step_{step:08d}.pt").write_bytes(b"")
        if curve is not None:
            (folder / "curve.json").write_text(json.dumps(curve))
        lines = log or [{"step": steps[-1], "epoch": 4.0, "images_per_second": 430.0}]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


def scores(value: float) -> dict[str, float]:
    """What a try's score is made of, and what the small study shows and chooses on."""
    return {
        "zero_shot_classification/demo_long_objects/top1_accuracy": value,
        "retrieval/demo_long_captions/image_to_text_recall@1": value / 2,
        "zero_shot_classification/demo_long_objects_tune/top1_accuracy": value,
    }
