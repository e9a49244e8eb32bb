from __future__ import annotations

import json

import pytest

from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.runtime import Workspace
from maskclip_bench.study.declaration import StudyDeclaration
from maskclip_bench.study.runs import (
    PAIRS_PER_SECOND,
    StudyRun,
    data_root,
    expected_seconds,
    is_trained,
    log_of,
    num_pairs,
    progress_of,
    runs_of,
    set_aside_another,
    speed_of,
    tries_of,
)
from tests.study.conftest import Finish


def test_runs__seed_by_seed_so_that_a_part_is_balanced(study: StudyDeclaration) -> None:
    keys = [run.key for run in runs_of(study)]
    assert keys[:4] == ["clip/seed0", "maskclip/seed0", "clip/seed1", "maskclip/seed1"]
    assert [run.stage for run in runs_of(study)] == ["main"] * 4 + ["more"]
    assert [run.key for run in runs_of(study, rows=["maskclip"], seeds=[1])] == ["maskclip/seed1"]
    assert runs_of(study, stages=["tuning"]) == []


def test_runs__unknown_names(study: StudyDeclaration) -> None:
    with pytest.raises(UnknownNameError, match="No stage 'mian'"):
        runs_of(study, stages=["mian"])
    with pytest.raises(UnknownNameError, match="No row 'slip'"):
        runs_of(study, rows=["slip"])
    with pytest.raises(ConfigError, match=r"small has no seed \[5\]. Choose from \[0, 1\]"):
        runs_of(study, seeds=[5])


def test_run__its_recipe_and_folders(study: StudyDeclaration, workspace: Workspace) -> None:
    run = runs_of(study)[3]
    assert run.recipe.seed == 1
    assert run.folder(workspace) == workspace.root / "pretrain" / "tiny" / "maskclip" / "seed1"
    assert data_root(study, 1, workspace) == workspace.root / "studies" / "small" / "seed1"
    tried = tries_of(study, "maskclip", {"optimizer.lr": 2e-3})[1]
    assert tried.key == "tries/maskclip-2"
    assert tried.recipe.seed == 9
    assert tried.recipe.optimizer.lr == 2e-3
    assert tried.recipe.method.fields["mlm_weight"] == 0.5
    assert tried.folder(workspace) == workspace.root / "pretrain" / "tiny" / "tries" / "maskclip-2"


def test_tries__none_without_tuning(study: StudyDeclaration) -> None:
    assert tries_of(study.model_copy(update={"tuning": None}), "clip") == []


def test_cost__pairs_times_the_methods_cost(study: StudyDeclaration) -> None:
    clip, maskclip = runs_of(study)[:2]
    assert num_pairs(clip.recipe, 64) == 256
    assert num_pairs(clip.recipe.model_copy(update={"num_pairs": 7, "epochs": None}), 64) == 7
    assert expected_seconds(clip) == pytest.approx(256 / PAIRS_PER_SECOND)
    assert expected_seconds(maskclip) == pytest.approx(2 * 256 / PAIRS_PER_SECOND, rel=0.2)


def test_is_trained__of_this_very_recipe(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    run = runs_of(study)[0]
    assert not is_trained(run, workspace)
    finish(run)
    assert is_trained(run, workspace)
    other = StudyRun(study, "main", "clip", 0, settings=(("optimizer.lr", 0.01),))
    assert not is_trained(other, workspace)


def test_progress__by_the_log(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    run = runs_of(study)[0]
    assert progress_of(run, workspace) == 0.0
    folder = finish(run, log=[{"step": 2, "epoch": 1.0}])
    assert progress_of(run, workspace) == 1.0
    (folder / "model" / "provenance.json").unlink()
    assert progress_of(run, workspace) == 0.25


def test_log__damaged_lines_are_left_out(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    folder = finish(runs_of(study)[0])
    (folder / "log.jsonl").write_text('{"step": 1}\n{"st\n[1]\n{"step": 2}\n')
    assert log_of(folder) == [{"step": 1}, {"step": 2}]
    assert log_of(folder / "nothing") == []


def test_speed__as_a_share_of_what_is_expected(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    run = runs_of(study)[0]
    assert speed_of([run], workspace) is None
    finish(run, log=[{"step": 1, "images_per_second": PAIRS_PER_SECOND / 2}])
    assert speed_of(runs_of(study), workspace) == pytest.approx(0.5)


def test_set_aside__what_another_recipe_left(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    run = runs_of(study)[0]
    assert set_aside_another(run, workspace) is None  # nothing there
    folder = finish(run)
    (folder / "recipe.yaml").write_text(json.dumps(run.recipe.model_dump(mode="json")))
    assert set_aside_another(run, workspace) is None  # its own
    other = StudyRun(study, "main", "clip", 0, settings=(("optimizer.lr", 0.01),))
    moved = set_aside_another(other, workspace)
    assert moved is not None and moved.name == f"seed0.{run.fingerprint[:8]}"
    assert (moved / "recipe.yaml").exists() and not folder.exists()
