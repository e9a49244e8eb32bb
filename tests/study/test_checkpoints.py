from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.runtime import Workspace
from maskclip_bench.study import checkpoints
from maskclip_bench.study.checkpoints import (
    best_step,
    checkpoint_steps,
    measure_checkpoints,
    missing_scores,
    read_curve,
    tasks_of,
    try_score,
)
from maskclip_bench.study.declaration import StudyDeclaration
from maskclip_bench.study.runs import runs_of, tries_of
from tests.study.conftest import Finish, scores

TASK = "zero_shot_classification/demo_long_objects"
TUNE = "zero_shot_classification/demo_long_objects_tune"


def test_missing__all_checkpoints_of_a_run_the_last_of_a_try(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    run, tried = runs_of(study)[0], tries_of(study, "clip")[0]
    finish(run, curve={4: scores(0.1)})
    finish(tried)
    assert missing_scores(run, workspace) == {8: [TASK, TUNE]}
    assert missing_scores(tried, workspace) == {8: [TASK, "retrieval/demo_long_captions"]}
    assert (
        tasks_of(run.__class__(study.model_copy(update={"curve": None}), "main", "clip", 0)) == []
    )


def test_measure__keeps_each_checkpoint_and_measures_none_twice(
    study: StudyDeclaration, workspace: Workspace, finish: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs_of(study)[0]
    folder = finish(run, curve={4: scores(0.1)}, steps=(4, 8, 12))
    seen: list[tuple[Path, tuple[str, ...], Path]] = []

    def measure(loaded: Any, tasks: Any, place: Workspace, device: Any) -> dict[str, float]:
        seen.append((loaded, tuple(tasks), place.data))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return scores(0.2)

    monkeypatch.setattr("maskclip_bench.training.checkpoint.load_checkpoint", lambda path: path)
    monkeypatch.setattr(checkpoints, "_measure", measure)
    with pytest.raises(KeyboardInterrupt):
        measure_checkpoints(run, workspace, device=torch.device("cpu"))
    assert list(read_curve(folder)) == [4, 8]  # the one that was done is kept
    assert seen[0][2] == workspace.root / "studies" / "small" / "seed0"
    monkeypatch.setattr(checkpoints, "_measure", lambda *_: scores(0.3))
    curve = measure_checkpoints(run, workspace, device=torch.device("cpu"))
    assert [curve[step][f"{TASK}/top1_accuracy"] for step in (4, 8, 12)] == [0.1, 0.2, 0.3]


def test_measure__no_checkpoint(study: StudyDeclaration, workspace: Workspace) -> None:
    with pytest.raises(
        CheckpointError, match=r"has no checkpoint\. Train it: maskclip-bench study"
    ):
        measure_checkpoints(runs_of(study)[0], workspace, device=torch.device("cpu"))


def test_steps__other_files_are_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("step_00000009.pt", "step_00000010.pt", "step_00000011.pt.damaged", "notes.pt"):
        (tmp_path / "checkpoints" / name).touch()
    assert list(checkpoint_steps(tmp_path)) == [9, 10]


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{"1": 2}'])
def test_curve__a_damaged_file_is_measured_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "curve.json").write_text(text)
    assert read_curve(tmp_path) == {}


def test_best_step__the_earliest_of_the_largest(study: StudyDeclaration) -> None:
    assert best_step(study, {4: scores(0.2), 8: scores(0.5), 12: scores(0.5)}) == 8
    assert best_step(study, {}) is None
    assert best_step(study, {4: scores(0.2), 8: {}}) is None
    assert best_step(study.model_copy(update={"curve": None}), {4: scores(0.2)}) is None


def test_try_score__the_mean_at_the_last_checkpoint(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    tried = tries_of(study, "clip")[0]
    finish(tried, curve={4: scores(0.9)})
    assert try_score(tried, workspace) is None
    finish(tried, curve={4: scores(0.9), 8: scores(0.4)})
    assert try_score(tried, workspace) == pytest.approx((0.4 + 0.2) / 2)
    with pytest.raises(ConfigError, match="clip/seed0 is no try"):
        try_score(runs_of(study)[0], workspace)
