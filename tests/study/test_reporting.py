from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.errors import DataError
from maskclip_bench.runtime import Workspace
from maskclip_bench.study.collecting import collect
from maskclip_bench.study.declaration import StudyDeclaration
from maskclip_bench.study.reporting import write_report
from maskclip_bench.study.runs import runs_of
from maskclip_bench.study.tuning import tries
from tests.study.conftest import Finish, scores
from tests.study.test_collecting import LOG, save_record


def test_report__tables_sentences_and_figure_from_the_results_alone(
    study: StudyDeclaration, workspace: Workspace, finish: Finish, tmp_path: Path
) -> None:
    for run in runs_of(study, stages=["main"]):
        finish(run, log=LOG, curve={4: scores(0.2), 8: scores(0.1)})
        hits = 20 + 4 * (run.row == "maskclip") + run.seed
        save_record(workspace, f"tiny-{run.row}", hits, seed=run.seed, data=f"world {run.seed}")
    results = tmp_path / "results"
    collect(study, workspace, results)
    figure = tmp_path / "docs" / "study.png"
    written = write_report(study, results, figure=figure)
    assert figure in written and figure.stat().st_size > 10_000
    text = (results / "studies" / "small" / "report.md").read_text()
    assert "All 2 seeds are measured." in text
    assert "**Settings are not tuned: 4 of 4 tries are not measured.**" in text
    assert "over 2 training seeds, each with a world of its own" in text
    assert "| clip | 1 | optimizer.lr=0.001 | not run |  |" in text
    assert "held-out loss, smallest" in text
    assert "| maskclip | 2, 2 | 20.0 ± 0.0 (+0.0) |" in text  # the first of two checkpoints
    assert (results / "tables" / "tiny.md").exists()


def test_report__says_that_settings_are_the_best_tries(
    study: StudyDeclaration, workspace: Workspace, finish: Finish, tmp_path: Path
) -> None:
    for row in ("clip", "maskclip"):
        for each in tries(study, row, workspace):
            finish(each.run, curve={8: scores(0.4)})
    finish(runs_of(study)[0], log=LOG)
    collect(study, workspace, tmp_path / "results")
    write_report(study, tmp_path / "results")
    text = (tmp_path / "results" / "studies" / "small" / "report.md").read_text()
    assert "Settings are those of the best of all 4 tries." in text


def test_report__nothing_is_finished(study: StudyDeclaration, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run of small is finished. Make some with: maskclip-"):
        write_report(study, tmp_path)
