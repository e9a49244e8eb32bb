"""Pretraining runs of the rows, from their logs: losses, health of the parts, speed, cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from maskclip_bench.report.selection import ReportRow
from maskclip_bench.runtime import RECIPE_FILE, Workspace

LOG_FILE = "log.jsonl"

NOT_DRAWN = frozenset({"step", "epoch", "lr", "lost_samples", "bad_samples"})
SPEED = ("images_per_second", "data_wait_fraction", "memory_gib", "num_nonfinite_steps")
COUNTS = frozenset({"num_nonfinite_steps"})
"""Drawn only where they are above zero."""
MAX_POINTS = 400
"""Of a curve; longer ones are thinned evenly."""


@dataclass
class Run:
    """One pretraining run.

    Attributes:
        row: Its row.
        seed: Of the run.
        recipe: Name of the recipe.
        steps: Of each logged line.
        logged: Key of the log -> one value a line, NaN where a line lacks it.
        batch: Image-text pairs of a step.
    """

    row: ReportRow
    seed: int
    recipe: str
    steps: list[int] = field(default_factory=list)
    logged: dict[str, list[float]] = field(default_factory=dict)
    batch: int | None = None

    @property
    def num_pairs(self) -> int | None:
        """Image-text pairs seen, by the last logged step."""
        return None if self.batch is None or not self.steps else self.batch * self.steps[-1]

    @property
    def seconds(self) -> float | None:
        """Time in training steps, from the logged speed; without evaluation and checkpoints."""
        speed = self.logged.get("images_per_second")
        if speed is None or self.batch is None or not self.steps:
            return None
        total, before = 0.0, 0
        for step, rate in zip(self.steps, speed, strict=True):
            if not (math.isfinite(rate) and rate > 0):
                return None
            total += (step - before) * self.batch / rate
            before = step
        return total


def read_runs(rows: Sequence[ReportRow], workspace: Workspace) -> list[Run]:
    """The run of every row that has a log here: of its first recorded seed."""
    found = []
    for row in rows:
        recipe = row.declaration.recipe if row.declaration else None
        source: Any = row.declaration.source if row.declaration else None
        if recipe is None or getattr(source, "random_init", False):
            continue
        seed = row.seeds[0]
        folder = workspace.pretraining(recipe, seed)
        run = Run(row, seed, recipe, batch=_batch(folder / RECIPE_FILE))
        if _read_log(folder / LOG_FILE, run):
            found.append(run)
    return found


def terms(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Keys that some run logged, by kind: "losses", "health", "speed"; in the order of the logs."""
    keys = list(dict.fromkeys(key for run in runs for key in run.logged))
    losses = [key for key in keys if key == "loss" or key.endswith("_loss")]
    speed = [key for key in SPEED if key in keys and (key not in COUNTS or _ever(runs, key))]
    rest = [key for key in keys if key not in {*losses, *SPEED, *NOT_DRAWN}]
    shown = [key for key in rest if any(_is_logged(run.logged.get(key, [])) for run in runs)]
    losses.sort(key=lambda key: key == "loss")  # the terms, then their sum
    return {"losses": losses, "health": shown, "speed": speed}


def _ever(runs: Sequence[Run], key: str) -> bool:
    """Whether a count was ever above zero."""
    return any(value > 0 for run in runs for value in run.logged.get(key, []))


def _is_logged(values: Sequence[float]) -> bool:
    return any(math.isfinite(value) for value in values)


def _batch(path: Path) -> int | None:
    try:
        recipe: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return int(recipe["global_batch_size"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None


def _read_log(path: Path, run: Run) -> bool:
    """Fill a run from its log; a line that is no JSON (a run was killed there) is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    by_step: dict[int, dict[str, float]] = {}
    for line in lines:
        try:
            entry: Any = json.loads(line)
            step = int(entry["step"])
        except (ValueError, TypeError, KeyError):
            continue
        numbers = {
            str(key): float(value)
            for key, value in entry.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        by_step.setdefault(step, {}).update(numbers)  # a resumed run logs a step again
    if not by_step:
        return False
    run.steps = sorted(by_step)
    if len(run.steps) > MAX_POINTS:
        every = -(-len(run.steps) // MAX_POINTS)
        run.steps = sorted({*run.steps[::every], run.steps[-1]})
    keys = dict.fromkeys(key for entry in by_step.values() for key in entry)
    run.logged = {
        key: [by_step[step].get(key, math.nan) for step in run.steps]
        for key in keys
        if key not in NOT_DRAWN
    }
    return True
