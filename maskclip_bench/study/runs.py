"""The runs of a study: in which order, where each is kept, how far it is, and what it costs."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskclip_bench.errors import ConfigError, unknown_name
from maskclip_bench.pretrain.export import finished_fingerprint
from maskclip_bench.pretrain.recipe import Recipe, load_recipe
from maskclip_bench.pretrain.run_folder import RunFolder
from maskclip_bench.runtime import MODEL_FOLDER, Workspace
from maskclip_bench.study.declaration import Settings, StudyDeclaration
from maskclip_bench.training.logs import LOG_FILE

TUNING = "tuning"
"""Name of the stage of the tries."""

PAIRS_PER_SECOND = 430.0
"""Image-text pairs that CLIP's demo model sees in a second on one quiet core (docs/study.md)."""


@dataclass(frozen=True)
class StudyRun:
    """One training of a study.

    Attributes:
        study: Of which.
        stage: Name of its stage; `TUNING` for a try.
        row: Name of the row.
        seed: Of the training and of its world.
        settings: Overrides of the recipe (a try's).
        number: Of the try, counted from 1; 0 for a run of the study's own.
    """

    study: StudyDeclaration
    stage: str
    row: str
    seed: int
    settings: tuple[tuple[str, object], ...] = ()
    number: int = 0

    @property
    def key(self) -> str:
        """Its name: `maskclip/seed0`, or `tries/maskclip-2`."""
        return f"tries/{self.row}-{self.number}" if self.number else f"{self.row}/seed{self.seed}"

    @property
    def suite(self) -> str:
        """What is measured of it."""
        stage = self.study.stage(self.stage)
        return (stage and stage.suite) or self.study.suite

    @property
    def measure_seconds(self) -> float:
        """How long that takes on one quiet core; nothing for a try, which needs no suite."""
        stage = self.study.stage(self.stage)
        return 60 * stage.measure_minutes if stage else 0.0

    @property
    def recipe_name(self) -> str:
        """Of its recipe."""
        return self.study.recipe_of(self.row)

    @property
    def overrides(self) -> list[str]:
        """For `maskclip-bench pretrain`."""
        return [f"seed={self.seed}", *(f"{key}={value}" for key, value in self.settings)]

    @functools.cached_property
    def recipe(self) -> Recipe:
        """Its recipe, with the overrides; read when it is first asked for.

        Raises:
            ConfigError: An override does not fit.
        """
        return load_recipe(self.recipe_name, self.overrides)

    @functools.cached_property
    def fingerprint(self) -> str:
        """`Recipe.computation_fingerprint` of its recipe."""
        return self.recipe.computation_fingerprint()

    def folder(self, workspace: Workspace) -> Path:
        """The folder of the training."""
        if self.number:
            return workspace.pretrain / self.study.recipe_of("tries") / f"{self.row}-{self.number}"
        return workspace.pretraining(self.recipe_name, self.seed)


def data_root(study: StudyDeclaration, seed: int, workspace: Workspace) -> Path:
    """The data root of a seed: its world is in it."""
    return workspace.root / "studies" / study.name / f"seed{seed}"


def tries_of(study: StudyDeclaration, row: str, base: Settings | None = None) -> list[StudyRun]:
    """The tries of a row.

    Args:
        study: Of which.
        row: Whose.
        base: Settings below those of each try: the best ones of the study's first row.
    """
    if study.tuning is None:
        return []
    return [
        StudyRun(
            study,
            TUNING,
            row,
            study.tuning.seed,
            settings=tuple({**(base or {}), **settings}.items()),
            number=number,
        )
        for number, settings in enumerate(study.tuning.tries[row], start=1)
    ]


def runs_of(
    study: StudyDeclaration,
    *,
    stages: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[StudyRun]:
    """The study's own runs in their order: stage by stage, in each seed by seed; without tries.

    Args:
        study: Of which.
        stages: Only these; all by default.
        rows: Only these.
        seeds: Only these.

    Raises:
        UnknownNameError: The study has no such stage or row.
        ConfigError: It has no such seed, or no run is left.
    """
    remedy = f"See: maskclip-bench study plan {study.name}"
    known = [TUNING, *(stage.name for stage in study.stages)]
    for name in stages:
        if name not in known:
            raise unknown_name("stage", name, known, remedy=remedy)
    for row in rows:
        if row not in study.rows:
            raise unknown_name("row", row, study.rows, remedy=remedy)
    if unknown := sorted(set(seeds) - set(study.seeds)):
        raise ConfigError(
            f"{study.name} has no seed {unknown}. Choose from {sorted(study.seeds)}. {remedy}"
        )
    return [
        StudyRun(study, stage.name, row, seed)
        for stage in study.stages
        if not stages or stage.name in stages
        for seed in stage.seeds
        if not seeds or seed in seeds
        for row in stage.rows
        if not rows or row in rows
    ]


def is_trained(run: StudyRun, workspace: Workspace) -> bool:
    """Whether the model of this very recipe is there."""
    made_by = finished_fingerprint(run.folder(workspace) / MODEL_FOLDER)
    return made_by is not None and made_by == run.fingerprint


def set_aside_another(run: StudyRun, workspace: Workspace) -> Path | None:
    """Move away what another recipe left in the run's folder, as when settings were settled since.

    Returns:
        Where it is now; None if there was nothing of the kind.
    """
    folder = run.folder(workspace)
    if not folder.exists():
        return None
    recipe = run.recipe
    try:
        RunFolder(folder).claim(recipe)
    except ConfigError:
        made_by = finished_fingerprint(folder / MODEL_FOLDER) or "unfinished"
        target = folder.with_name(f"{folder.name}.{made_by[:8]}")
        folder.rename(target)
        return target
    return None


def num_pairs(recipe: Recipe, pairs_of_pass: int) -> int:
    """Image-text pairs that a run of the recipe sees."""
    if recipe.num_pairs is not None:
        return recipe.num_pairs
    assert recipe.epochs is not None
    return round(recipe.epochs * pairs_of_pass)


def expected_seconds(run: StudyRun) -> float:
    """Of the training, on one quiet core."""
    recipe = run.recipe
    pairs = num_pairs(recipe, run.study.world.pairs_of_pass)
    return pairs * recipe.method.relative_cost / PAIRS_PER_SECOND


def progress_of(run: StudyRun, workspace: Workspace) -> float:
    """How much of the training is done, 0 to 1, by its log."""
    if is_trained(run, workspace):
        return 1.0
    last = None
    for values in log_of(run.folder(workspace)):
        last = values
    recipe = run.recipe
    if last is None or recipe.epochs is None:
        return 0.0
    return min(1.0, float(last.get("epoch", 0.0)) / recipe.epochs)


def log_of(folder: Path) -> list[dict[str, float]]:
    """Lines of a run's log; those that are damaged are left out."""
    lines = []
    try:
        text = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            lines.append(values)
    return lines


def speed_of(runs: Iterable[StudyRun], workspace: Workspace) -> float | None:
    """How fast runs have gone here, as a share of the speed expected; None if none has begun."""
    shares = []
    for run in runs:
        rates = [
            float(values["images_per_second"])
            for values in log_of(run.folder(workspace))
            if values.get("images_per_second")
        ]
        if rates:
            cost = run.recipe.method.relative_cost
            shares.append(statistics.harmonic_mean(rates) * cost / PAIRS_PER_SECOND)
    return statistics.fmean(shares) if shares else None
