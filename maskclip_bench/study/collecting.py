"""What a study's workspace holds, as tables to be committed, and its records.

| file | a line is |
| --- | --- |
| `runs.csv` | a training: its length and cost, its held-out loss, the health of its quantizer |
| `curves.csv` | a metric of a checkpoint |
| `tries.csv` | a try: what it set, and its score on the tuning world |

Figures and documents are made from these alone (`figure.py`), without the workspace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from maskclip_bench import storage
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.results.records import RecordStore
from maskclip_bench.runtime import Workspace
from maskclip_bench.study.checkpoints import best_step, missing_scores, read_curve
from maskclip_bench.study.declaration import StudyDeclaration
from maskclip_bench.study.runs import StudyRun, is_trained, log_of, num_pairs, runs_of
from maskclip_bench.study.tuning import best, tries

HELD_OUT = "held_out_contrastive_loss"

RUNS_FILE, CURVES_FILE, TRIES_FILE = "runs.csv", "curves.csv", "tries.csv"


def collect(study: StudyDeclaration, workspace: Workspace, output: Path) -> list[Path]:
    """Write the tables of a study, and copy the records of its rows; returns the tables' paths.

    Runs that are not finished are left out: their scores are of another schedule.

    Args:
        study: Which.
        workspace: Where it was done.
        output: A folder laid out like `results/`: `studies/<name>/*.csv` and `records/` below it.

    Raises:
        DataError: A record is of a newer version.
        StorageError: The disk refused.
    """
    done = [run for run in _each_once(study) if is_trained(run, workspace)]
    folder = output / "studies" / study.name
    tables = {
        RUNS_FILE: [_run_line(run, workspace) for run in done],
        CURVES_FILE: [line for run in done for line in _curve_lines(run, workspace)],
        TRIES_FILE: _try_lines(study, workspace),
    }
    written = []
    for name, lines in tables.items():
        if lines:
            storage.write_text(folder / name, pd.DataFrame(lines).to_csv(index=False))
            written.append(folder / name)
    _copy_records(study, done, workspace, output / "records")
    return written


def _each_once(study: StudyDeclaration) -> list[StudyRun]:
    """Runs that two stages share once, as runs of the first, and where that has them."""
    first: dict[Any, StudyRun] = {}
    for run in runs_of(study):
        first.setdefault(run.key, run)
    return list(first.values())


def cost_of_pass(recipe: Recipe) -> float:
    """Computation of one pass, in passes of CLIP (`Method.relative_cost`)."""
    return recipe.method.relative_cost


def _run_line(run: StudyRun, workspace: Workspace) -> dict[str, Any]:
    recipe, folder = run.recipe, run.folder(workspace)
    log = log_of(folder)
    of_pass = run.study.world.pairs_of_pass
    pairs = num_pairs(recipe, of_pass)
    passes = pairs / of_pass
    steps = max((int(line["step"]) for line in log), default=0)
    line: dict[str, Any] = {
        "stage": run.stage,
        "row": run.row,
        "seed": run.seed,
        "unseen_artist": " ".join(run.study.held_out(run.seed)),
        "recipe": run.fingerprint,
        "pairs": pairs,
        "passes": passes,
        "cost": passes * cost_of_pass(recipe),
        **_held_out(log, steps, passes),
        "train_contrastive_loss_end": _last(log, "contrastive_loss"),
        **_health(recipe, log, steps),
        "nonfinite_steps": _last(log, "num_nonfinite_steps"),
    }
    whole = not missing_scores(run, workspace)  # else a later checkpoint may be better
    chosen = best_step(run.study, read_curve(folder)) if whole else None
    line["best_pass"] = None if chosen is None or not steps else chosen / steps * passes
    return line


def _held_out(log: list[dict[str, float]], steps: int, passes: float) -> dict[str, Any]:
    """The held-out loss: its smallest value, at which pass, and its end."""
    seen = [(line[HELD_OUT], line["step"]) for line in log if line.get(HELD_OUT) is not None]
    if not seen or not steps:
        return {"held_out_loss_min": None, "held_out_min_pass": None, "held_out_loss_end": None}
    smallest, step = min(seen)
    return {
        "held_out_loss_min": smallest,
        "held_out_min_pass": step / steps * passes,
        "held_out_loss_end": seen[-1][0],
    }


def _health(recipe: Recipe, log: list[dict[str, float]], steps: int) -> dict[str, Any]:
    """Of the quantizer and the teacher: at the end, and the angle that codewords have turned."""
    turns = [(line["step"], line.get("codeword_turn_degrees")) for line in log]
    known = [(step, turn) for step, turn in turns if turn is not None]
    total, before = 0.0, 0.0
    for step, turn in known:  # a line tells of the last step before it
        total += turn * (step - before)
        before = step
    memory = recipe.method.fields.get("ema_memory")
    aged = _last(log, "teacher_age_steps")
    return {
        "codeword_perplexity_end": _last(log, "codeword_perplexity"),
        "codeword_row_perplexity_end": _last(log, "codeword_row_perplexity"),
        "codeword_turn_degrees_sum": total if known else None,
        "teacher_age_steps_end": aged,
        "teacher_age_steps_set": None if aged is None or memory is None else memory * steps,
    }


def _last(log: list[dict[str, float]], key: str) -> float | None:
    values = [line[key] for line in log if line.get(key) is not None]
    return values[-1] if values else None


def _curve_lines(run: StudyRun, workspace: Workspace) -> list[dict[str, Any]]:
    """The shown metrics of a run's checkpoints, and its held-out loss."""
    folder, recipe = run.folder(workspace), run.recipe
    log, curve = log_of(folder), read_curve(folder)
    of_pass = run.study.world.pairs_of_pass
    pairs = num_pairs(recipe, of_pass)
    steps = max((int(line["step"]) for line in log), default=max(curve, default=0))
    shown = [part.key for part in run.study.curve.show] if run.study.curve else []
    found = [
        (step, key, scores[key]) for step, scores in curve.items() for key in shown if key in scores
    ]
    found += [
        (int(line["step"]), HELD_OUT, line[HELD_OUT])
        for line in log
        if line.get(HELD_OUT) is not None
    ]
    return [
        {
            "row": run.row,
            "seed": run.seed,
            "step": step,
            "passes": round(step / steps * pairs / of_pass, 3),
            "cost": round(step / steps * pairs / of_pass * cost_of_pass(recipe), 3),
            "metric": metric,
            "value": round(value, 6),
        }
        for step, metric, value in found
    ]


def _try_lines(study: StudyDeclaration, workspace: Workspace) -> list[dict[str, Any]]:
    """All tries, those that are not measured too: without a score."""
    lines = []
    for row in study.tuning.tries if study.tuning else {}:
        found = tries(study, row, workspace)
        winner = best(found)
        for each in found:
            settings = " ".join(f"{key}={value}" for key, value in each.settings.items())
            lines.append(
                {
                    "row": row,
                    "try": each.run.number,
                    "settings": settings,
                    "score": None if each.score is None else round(each.score, 6),
                    "chosen": each is winner,
                }
            )
    return lines


def _copy_records(
    study: StudyDeclaration, done: list[StudyRun], workspace: Workspace, target: Path
) -> None:
    """Copy the records of finished rows that are not in the target as they are."""
    wanted = {(study.backbone_of(run.row), run.seed) for run in done}
    source, copy = RecordStore(workspace.records), RecordStore(target)
    for record in source.all(backbones={name for name, _ in wanted}):
        if (record.cell.backbone, record.cell.seed) not in wanted or record.status != "ok":
            continue
        there = copy.load(record.row_id, record.cell.protocol, record.cell.dataset)
        if there is None or there.seal != record.seal:
            copy.take(record, source)
