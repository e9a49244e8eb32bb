from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskclip_bench.cli.app import run
from maskclip_bench.runtime import Workspace
from maskclip_bench.study.engine import Outcome, StudyEngine
from maskclip_bench.study.runs import runs_of
from tests.study.conftest import Finish, catalogue, finish, scores, study, workspace

__all__ = ["catalogue", "finish", "study", "workspace"]  # fixtures


def call(workspace: Workspace, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(["study", *arguments, "-w", str(workspace.root)])
    return int(ended.value.code or 0)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["study", "list"])
    assert "demo_long  The paper's regime in miniature" in capsys.readouterr().out


def test_plan__runs_progress_and_hours(
    study: Any, workspace: Workspace, finish: Finish, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(runs_of(study)[0], curve={4: scores(0.1), 8: scores(0.1)})
    assert call(workspace, "plan", "small") == 0
    text = capsys.readouterr().out
    assert "tries of clip: -, -  (not tuned yet)" in text
    assert "9 runs;" in text and "core-hours left" in text
    line = next(line for line in text.splitlines() if line.startswith("clip/seed0 "))
    assert line.split()[1:5] == ["main", "100", "%", "checkpoints"]


def test_run__failures_end_non_zero(
    study: Any,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}

    def pretend(self: StudyEngine, **given: Any) -> Outcome:
        asked.update(given)
        return Outcome(done=["a"], failed={"b": "no disk"}, skipped=["c"])

    monkeypatch.setattr(StudyEngine, "run", pretend)
    assert call(workspace, "run", "small", "--row", "clip", "--seed", "1", "-j", "1") == 1
    assert asked == {"stages": [], "rows": ["clip"], "seeds": [1]}
    text = capsys.readouterr().out
    assert "failed: b: no disk" in text and "1 pieces done, 1 failed, 1 left out" in text


def test_curve__a_try_that_is_not_there(
    study: Any, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(workspace, "curve", "small", "clip", "--try", "3", "--device", "cpu") == 2
    assert "clip has 2 tries; there is no try 3" in capsys.readouterr().err


def test_settle__before_the_tries(
    study: Any, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(workspace, "settle", "small") == 2
    assert "0 of 2 tries of clip are measured" in capsys.readouterr().err


def test_report__nothing_yet(
    study: Any, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(workspace, "report", "small", "-o", str(tmp_path / "results")) == 3
    assert "no run of small is finished" in capsys.readouterr().err


@pytest.mark.slow
def test_run__a_small_study_from_world_to_report(
    study: Any, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(workspace, "run", "small", "--stage", "main", "-j", "1", "--device", "cpu") == 0
    assert "failed" not in capsys.readouterr().out.replace("0 failed", "")
    assert call(workspace, "run", "small", "--stage", "main", "-j", "1", "--device", "cpu") == 0
    assert "0 pieces done" in capsys.readouterr().out
    results = tmp_path / "results"
    assert call(workspace, "report", "small", "-o", str(results)) == 0
    text = (results / "studies" / "small" / "report.md").read_text()
    assert "All 2 seeds are measured." in text and "| maskclip | 1 |" in text
