"""Scores of a run's checkpoints: the curve of a run against its passes, and the score of a try.

They are in `curve.json` of the run's folder: step -> "protocol/data set/metric" -> value. What is
there is not measured again. No checkpoint is chosen here: a run goes on to its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskclip_bench import storage
from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.runtime import CHECKPOINT_FOLDER, Workspace
from maskclip_bench.study.declaration import StudyDeclaration
from maskclip_bench.study.runs import StudyRun, data_root

if TYPE_CHECKING:
    import torch

    from maskclip_bench.training.checkpoint import Checkpoint

CURVE_FILE = "curve.json"

Scores = dict[str, float]
"""protocol/data set/metric -> value, a fraction."""

_STEP = re.compile(r"step_(\d+)\.(pt|dcp)")


def checkpoint_steps(folder: Path) -> dict[int, Path]:
    """Steps of the checkpoints of a run, in order."""
    found = {
        int(match[1]): path
        for path in (folder / CHECKPOINT_FOLDER).glob("step_*")
        if (match := _STEP.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def read_curve(folder: Path) -> dict[int, Scores]:
    """What is measured of a run's checkpoints, by step; nothing where the file cannot be read."""
    try:
        values = json.loads((folder / CURVE_FILE).read_text(encoding="utf-8"))
        curve = {
            int(step): {str(key): float(value) for key, value in scores.items()}
            for step, scores in values.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return dict(sorted(curve.items()))


def tasks_of(run: StudyRun) -> list[str]:
    """What is measured of the checkpoints of a run: for a try only what its score is made of."""
    study = run.study
    if run.number:
        assert study.tuning is not None
        names = [part.task for part in study.tuning.score]
    elif study.curve is not None:
        names = [part.task for part in (*study.curve.show, *study.curve.choose_on)]
    else:
        names = []
    return list(dict.fromkeys(names))


def missing_scores(run: StudyRun, workspace: Workspace) -> dict[int, list[str]]:
    """Tasks that are not measured yet, by step; of a try at its last checkpoint alone."""
    folder, tasks = run.folder(workspace), tasks_of(run)
    measured = read_curve(folder)
    steps = list(checkpoint_steps(folder))
    missing = {}
    for step in steps[-1:] if run.number else steps:
        known = {key.rpartition("/")[0] for key in measured.get(step, {})}
        if absent := [task for task in tasks if task not in known]:
            missing[step] = absent
    return missing


def measure_checkpoints(
    run: StudyRun,
    workspace: Workspace,
    *,
    device: torch.device,
    progress: Progress = no_progress,
) -> dict[int, Scores]:
    """Measure what is missing of a run's checkpoints, and keep it; returns all there is.

    Args:
        run: Which.
        workspace: Of the study.
        device: Where.
        progress: Told of the checkpoints done.

    Raises:
        CheckpointError: A checkpoint cannot be read, or there is none.
        DataError: The world of the run's seed is not there.
        StorageError: The disk refused.
    """
    from maskclip_bench.training.checkpoint import load_checkpoint

    folder = run.folder(workspace)
    paths = checkpoint_steps(folder)
    if not paths:
        raise CheckpointError(
            f"{folder} has no checkpoint. Train it: maskclip-bench study run {run.study.name}"
        )
    missing = missing_scores(run, workspace)
    world = Workspace(root=workspace.root, data=data_root(run.study, run.seed, workspace))
    for number, (step, tasks) in enumerate(missing.items()):
        progress("checkpoints", number, len(missing))
        scores = _measure(load_checkpoint(paths[step]), tasks, world, device)
        curve = read_curve(folder)
        curve[step] = {**curve.get(step, {}), **scores}
        content = {str(key): values for key, values in sorted(curve.items())}
        storage.write_json(folder / CURVE_FILE, content)
    return read_curve(folder)


def _measure(
    checkpoint: Checkpoint, tasks: Sequence[str], workspace: Workspace, device: torch.device
) -> Scores:
    """The student of a checkpoint on some tasks; its features are kept in memory for all."""
    from maskclip_bench.cli.pretrain import student_backbone
    from maskclip_bench.pretrain.export import model_of
    from maskclip_bench.pretrain.recipe import recorded_recipe
    from maskclip_bench.tasks import PROTOCOLS, load_task
    from maskclip_bench.tasks.features import FeatureStore
    from maskclip_bench.tasks.measure import measure

    where = f"the checkpoint of step {checkpoint.step}"
    recipe = recorded_recipe(checkpoint.recipe, where=where)
    model = model_of(checkpoint.method, recipe, weights="student", where=where).to(device)
    backbone = student_backbone(model, recipe, device)
    features = FeatureStore()
    scores: Scores = {}
    for name in tasks:
        protocol, task = load_task(name)
        measured = measure(
            PROTOCOLS[protocol],
            task,
            backbone,
            workspace=workspace,
            features=features,
            device=device,
        )
        scores |= {f"{name}/{metric}": found.value for metric, found in measured.metrics.items()}
    return scores


def best_step(study: StudyDeclaration, curve: dict[int, Scores]) -> int | None:
    """The step with the largest mean of the metrics to choose on; None if not all are measured.

    The earliest of several that are equal.
    """
    keys = [part.key for part in study.curve.choose_on] if study.curve else []
    if not keys or not curve or any(key not in scores for scores in curve.values() for key in keys):
        return None
    return max(curve, key=lambda step: (sum(curve[step][key] for key in keys), -step))


def try_score(run: StudyRun, workspace: Workspace) -> float | None:
    """The score of a try: the mean of its metrics at the end; None if it is not measured.

    Raises:
        ConfigError: The run is no try.
    """
    tuning = run.study.tuning
    if tuning is None or not run.number:
        raise ConfigError(f"{run.key} is no try: it has no score to choose by.")
    folder = run.folder(workspace)
    steps, curve = list(checkpoint_steps(folder)), read_curve(folder)
    last = curve.get(steps[-1] if steps else max(curve, default=-1), {})
    keys = [part.key for part in tuning.score]
    if any(key not in last for key in keys):
        return None
    return sum(last[key] for key in keys) / len(keys)
