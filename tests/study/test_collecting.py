from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.records import Cell, RecordStore, measured_record
from maskclip_bench.runtime import Workspace
from maskclip_bench.study.collecting import HELD_OUT, _each_once, collect
from maskclip_bench.study.declaration import StudyDeclaration, load_study
from maskclip_bench.study.runs import runs_of
from maskclip_bench.study.tuning import tries
from tests.study.conftest import Finish, scores

LOG = [
    {"step": 2, "contrastive_loss": 3.0, "codeword_turn_degrees": 0.5, "codeword_perplexity": 20.0},
    {"step": 4, HELD_OUT: 2.5},
    {"step": 4, "contrastive_loss": 2.0, "codeword_turn_degrees": 0.25, "teacher_age_steps": 0.08,
     "codeword_perplexity": 30.0, "num_nonfinite_steps": 0},
    {"step": 8, HELD_OUT: 2.75},
]  # fmt: skip


def save_record(
    workspace: Workspace, backbone: str, hits: int, *, seed: int = 0, data: str = "d"
) -> None:
    """A record of the small study's column, 40 samples."""
    outcomes = pd.DataFrame(
        {
            "sample_id": [f"image{i}" for i in range(40)],
            "group": [f"drawing{i // 2}" for i in range(40)],
            "top1_accuracy": (np.arange(40) < hits).astype(float),
        }
    )
    measurement = Measurement(
        metrics={"top1_accuracy": Metric(hits / 40, chance_level=0.1)},
        primary_metric="top1_accuracy",
        outcomes=outcomes,
        preset="p",
        preset_version=1,
    )
    cell = Cell(
        backbone=backbone,
        seed=seed,
        protocol="zero_shot_classification",
        dataset="demo_long_objects",
        world="demo",
        cell_fingerprint=f"f{seed}",
    )
    record = measured_record(cell, measurement, fingerprints={"data": data})
    RecordStore(workspace.records).save(record, outcomes)


def test_collect__finished_runs_and_their_records(
    study: StudyDeclaration, workspace: Workspace, finish: Finish, tmp_path: Path
) -> None:
    clip, maskclip = runs_of(study)[:2]
    finish(maskclip, log=LOG, curve={4: scores(0.2), 8: scores(0.1)})
    for backbone in ("tiny-clip", "tiny-maskclip"):  # CLIP was measured, but is not finished now
        save_record(workspace, backbone, 20)
    for each in tries(study, "clip", workspace):
        finish(each.run, curve={8: scores(0.2 + each.run.number / 10)})
    written = collect(study, workspace, tmp_path / "results")
    runs, curves, tried = (pd.read_csv(path) for path in written)

    (line,) = runs.to_dict("records")
    assert (line["row"], line["seed"], line["unseen_artist"]) == ("maskclip", 0, "noto")
    assert (line["pairs"], line["passes"]) == (256, 4.0)
    assert line["cost"] == pytest.approx(8.0, rel=0.2)
    assert (line["held_out_loss_min"], line["held_out_min_pass"]) == (2.5, 2.0)
    assert line["held_out_loss_end"] == 2.75
    assert line["codeword_perplexity_end"] == 30.0
    assert line["codeword_turn_degrees_sum"] == 2 * 0.5 + 2 * 0.25
    memory = maskclip.recipe.method.fields["ema_memory"]
    assert line["teacher_age_steps_set"] == pytest.approx(memory * 8)
    assert line["best_pass"] == 2.0

    shown = curves[curves["metric"] != HELD_OUT]
    assert shown["passes"].tolist() == [2.0, 4.0]
    assert shown["value"].tolist() == [0.2, 0.1]
    assert curves[curves["metric"] == HELD_OUT]["value"].tolist() == [2.5, 2.75]

    assert tried["try"].tolist() == [1, 2, 1, 2]
    assert tried["chosen"].tolist() == [False, True, False, False]
    assert tried["settings"][0] == "optimizer.lr=0.001"
    assert tried["score"][2:].isna().all()

    records = RecordStore(tmp_path / "results" / "records").all()
    assert [record.row_id for record in records] == ["tiny-maskclip"]
    assert clip.key == "clip/seed0"


def test_collect__again_changes_nothing(
    study: StudyDeclaration, workspace: Workspace, finish: Finish, tmp_path: Path
) -> None:
    finish(runs_of(study)[0], log=LOG[:1])
    save_record(workspace, "tiny-clip", 20)
    results = tmp_path / "results"
    contents = []
    for _ in range(2):
        paths = collect(study, workspace, results)
        files = sorted(
            path for path in results.rglob("*") if path.is_file() and path.name[0] != "."
        )
        contents.append({path: path.read_bytes() for path in files})
    assert [path.name for path in paths] == ["runs.csv", "tries.csv"]
    assert contents[0] == contents[1] and len(contents[0]) == 4


def test_collect__no_best_pass_before_all_checkpoints_are_measured(
    study: StudyDeclaration, workspace: Workspace, finish: Finish, tmp_path: Path
) -> None:
    finish(runs_of(study)[0], log=LOG, curve={4: scores(0.2)})
    paths = collect(study, workspace, tmp_path / "results")
    assert pd.read_csv(paths[0])["best_pass"].isna().all()
    assert pd.read_csv(paths[1])["value"].tolist() == [0.2, 2.5, 2.75]


def test_collect__nothing_is_finished(
    study: StudyDeclaration, workspace: Workspace, tmp_path: Path
) -> None:
    plain = study.model_copy(update={"tuning": None})
    assert collect(plain, workspace, tmp_path / "results") == []


def test_each_once__as_a_run_of_its_first_stage_and_in_its_place() -> None:
    runs = _each_once(load_study("demo_long"))  # its stage `dense` measures runs of others again
    assert len({run.key for run in runs}) == len(runs) == 5 * 5 + 4 * 3
    assert [run.stage for run in runs] == ["main"] * 20 + ["equal_cost"] * 5 + ["ablations"] * 12
    assert [(run.row, run.seed) for run in runs[:5]] == [
        *(("clip", 0), ("maskclip", 0), ("clip_mae", 0), ("slip", 0)),
        ("clip", 1),
    ]
