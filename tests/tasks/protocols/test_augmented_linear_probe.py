"""The augmented linear probe on colours: its presets, and the tests during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskclip_bench.results.measurement import Measurement
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, TaskDeclaration
from maskclip_bench.tasks.measure import measure
from maskclip_bench.testing import check_protocol
from tests.tasks.finetuning.tiny import tiny_backbone

SMALL = {"global_batch_size": 6, "micro_batch_size": 3, "epochs": 4, "precision": "fp32"}


def run(task: TaskDeclaration, root: Path, **settings: Any) -> Measurement:
    task = task.model_copy(update={"protocols": {"augmented_linear_probe": settings}})
    workspace = Workspace(root=root / "ws", data=root)
    return measure(PROTOCOLS["augmented_linear_probe"], task, tiny_backbone(), workspace=workspace)


def test_slip_sgd__the_best_of_the_tests_during_training_stands_apart(
    colours: TaskDeclaration, tmp_path: Path
) -> None:
    options = {**SMALL, "evaluate_every_epochs": 2, "lr": 1.0}
    found = run(colours, tmp_path, preset="slip_sgd", options=options)
    assert found.primary_metric == "top1_accuracy"
    by_step = found.details["evaluations"]
    assert list(by_step) == ["6", "12"]
    best = found.metrics["top1_accuracy_best_evaluation"]
    assert best.value == max(by_step.values())
    assert by_step["12"] == found.metrics["top1_accuracy"].value
    assert best.chance_level == pytest.approx(1 / 3)
    assert found.outcomes["top1_accuracy_best_evaluation"].notna().sum() == 12


@pytest.mark.parametrize("preset", ["slip_sgd_intended", "mae_lars", "small_sgd"])
def test_presets__only_the_head_learns(
    preset: str, colours: TaskDeclaration, tmp_path: Path
) -> None:
    found = run(colours, tmp_path, preset=preset, options={**SMALL, "warmup_epochs": 1})
    assert found.details["trained_parameters"] == 16 * 3 + 3
    assert found.details["layer_rates"] == {"3": 1.0}
    assert found.details["recipe"]["trained"] == "head"


def test_conformance(colours: TaskDeclaration, tmp_path: Path) -> None:
    options = {**SMALL, "augmentation.flip": 0}
    settings = {"augmented_linear_probe": {"preset": "small_sgd", "options": options}}
    task = colours.model_copy(update={"protocols": settings})
    check_protocol(PROTOCOLS["augmented_linear_probe"], task, workspace=tmp_path)
