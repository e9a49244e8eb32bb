from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from maskclip_bench.errors import ConfigError
from maskclip_bench.runtime import Workspace
from maskclip_bench.study import tuning
from maskclip_bench.study.declaration import StudyDeclaration
from maskclip_bench.study.tuning import best, is_settled, settle, settled_file, tries
from tests.study.conftest import Finish, scores


def run_tries(
    study: StudyDeclaration, workspace: Workspace, finish: Finish, row: str, *values: float
) -> None:
    for each, value in zip(tries(study, row, workspace), values, strict=False):
        finish(each.run, curve={8: scores(value)})


def test_best__only_when_all_are_measured_and_the_first_of_equal_ones(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    run_tries(study, workspace, finish, "clip", 0.4)
    assert best(tries(study, "clip", workspace)) is None
    run_tries(study, workspace, finish, "clip", 0.4, 0.4)
    found = best(tries(study, "clip", workspace))
    assert found is not None and found.run.number == 1
    assert best([]) is None
    assert tries(study.model_copy(update={"tuning": None}), "clip", workspace) == []


def test_others_begin_with_the_best_of_the_first(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    before = tries(study, "maskclip", workspace)[0].run.fingerprint
    run_tries(study, workspace, finish, "clip", 0.4, 0.6)
    after = tries(study, "maskclip", workspace)[0]
    assert after.run.recipe.optimizer.lr == 2e-3
    assert after.settings == {"method.mlm_weight": 0.05}
    assert after.run.fingerprint != before


def test_settle__writes_the_best_once(
    study: StudyDeclaration,
    workspace: Workspace,
    finish: Finish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "shipped_root", lambda: tmp_path / "shipped")
    run_tries(study, workspace, finish, "clip", 0.4, 0.6)
    with pytest.raises(ConfigError, match=r"0 of 2 tries of maskclip are measured. Nothing is"):
        settle(study, workspace)
    assert not (tmp_path / "shipped").exists()
    run_tries(study, workspace, finish, "maskclip", 0.7, 0.5)
    paths = settle(study, workspace)
    assert paths == [settled_file(study, "clip"), settled_file(study, "maskclip")]
    assert paths[0].name == "_settled_clip.yaml"
    text = paths[0].read_text()
    assert "try 2 of 2 is the best" in text and "score of 45.00" in text
    assert yaml.safe_load(text) == {"optimizer": {"lr": 2e-3}}
    assert settle(study, workspace) == []


def test_settle__a_study_without_tries(study: StudyDeclaration, workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="has no tries to settle anything by"):
        settle(study.model_copy(update={"tuning": None}), workspace)


def test_is_settled__compares_the_recipe_with_the_best_try(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    assert is_settled(study, "clip", workspace) is None
    run_tries(study, workspace, finish, "clip", 0.4, 0.6)
    assert is_settled(study, "clip", workspace) is False
    own = study.model_copy(
        update={
            "tuning": study.tuning.model_copy(  # type: ignore[union-attr]
                update={"tries": {"clip": [{"optimizer.lr": 1.5e-3}]}}
            )
        }
    )
    finish(tries(own, "clip", workspace)[0].run, curve={8: scores(0.4)})
    assert is_settled(own, "clip", workspace) is True
