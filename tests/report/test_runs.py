from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.report import runs
from maskclip_bench.report.runs import read_runs, terms
from maskclip_bench.report.runs_view import curve_charts
from maskclip_bench.report.selection import ReportRow
from maskclip_bench.runtime import Workspace

LINES = [
    {"step": 10, "loss": 4.0, "a_loss": 3.0, "ema_momentum": 0.99, "images_per_second": 100.0,
     "lr": 0.1, "num_nonfinite_steps": 0},
    {"step": 20, "loss": 3.0, "a_loss": 2.0, "ema_momentum": 0.995, "images_per_second": 50.0,
     "lr": 0.1, "num_nonfinite_steps": 0},
]  # fmt: skip


def row(recipe: str = "demo/clip", **source: object) -> ReportRow:
    declaration = BackboneDeclaration(
        name="clip", display_name="CLIP", world="demo", source={"recipe": recipe, **source}
    )
    return ReportRow("clip", "CLIP", (0,), 0, declaration)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    opened = Workspace.open(tmp_path)
    folder = opened.pretraining("demo/clip", 0)
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("\n".join(json.dumps(line) for line in LINES))
    (folder / "recipe.yaml").write_text("global_batch_size: 5\n")
    return opened


def log(workspace: Workspace) -> Path:
    return workspace.pretraining("demo/clip", 0) / "log.jsonl"


def test_read_runs__pairs_and_seconds(workspace: Workspace) -> None:
    (run,) = read_runs([row()], workspace)
    assert run.steps == [10, 20]
    assert run.logged["a_loss"] == [3.0, 2.0]
    assert run.num_pairs == 100
    assert run.seconds == 10 * 5 / 100 + 10 * 5 / 50
    assert terms([run]) == {
        "losses": ["a_loss", "loss"],
        "health": ["ema_momentum"],
        "speed": ["images_per_second"],
    }
    assert [heading for heading, _, _ in curve_charts([run])] == [
        "Loss terms", "Health of the parts", "Speed and memory",
    ]  # fmt: skip


def test_read_runs__a_killed_and_resumed_log(workspace: Workspace) -> None:
    again = {**LINES[1], "loss": 2.5}
    with log(workspace).open("a") as file:
        file.write('\n{"step": 30, "lo\n' + json.dumps(again) + "\n[1]\n")
    (run,) = read_runs([row()], workspace)
    assert run.steps == [10, 20]
    assert run.logged["loss"] == [4.0, 2.5]


def test_read_runs__no_log_or_nothing_in_it(workspace: Workspace) -> None:
    assert read_runs([row("demo/slip"), row(random_init=True)], workspace) == []
    log(workspace).write_text("nothing\n")
    assert read_runs([row()], workspace) == []


def test_seconds__unknown_without_a_speed_or_a_batch(workspace: Workspace) -> None:
    (workspace.pretraining("demo/clip", 0) / "recipe.yaml").write_text("x: [")
    (run,) = read_runs([row()], workspace)
    assert run.seconds is None
    assert run.num_pairs is None
    log(workspace).write_text(json.dumps({"step": 1, "loss": 1.0, "images_per_second": 0.0}))
    run.batch = 5
    (other,) = read_runs([row()], workspace)
    other.batch = 5
    assert other.seconds is None


def test_read_runs__long_logs_are_thinned(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MAX_POINTS", 10)
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 96)]
    log(workspace).write_text("\n".join(lines))
    (run,) = read_runs([row()], workspace)
    assert len(run.steps) <= 11
    assert run.steps[-1] == 95


def test_terms__steps_that_were_not_finite_are_drawn() -> None:
    run = runs.Run(row(), 0, "demo/clip", [1], {"num_nonfinite_steps": [2.0]})
    assert terms([run])["speed"] == ["num_nonfinite_steps"]
