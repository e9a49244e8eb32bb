"""The tries of a study: their scores, the best of each method, and writing it into the recipes.

A method's settings are chosen in a world whose numbers are not reported, by the same number of
tries for every method, and are fixed before the runs that are reported: `settle` writes them into
`configs/pretrain/<study>/_settled_<row>.yaml`, which the recipes are based on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maskclip_bench import storage
from maskclip_bench.data_files import shipped_root
from maskclip_bench.errors import ConfigError
from maskclip_bench.runtime import Workspace
from maskclip_bench.study.checkpoints import try_score
from maskclip_bench.study.declaration import Settings, StudyDeclaration
from maskclip_bench.study.runs import StudyRun, is_trained, tries_of


@dataclass(frozen=True)
class Try:
    """A try.

    Attributes:
        run: Its training.
        settings: What it sets beyond the recipe, without what all tries of the row share.
        score: Its mean on the tuning world; None if it is not measured.
    """

    run: StudyRun
    settings: Settings
    score: float | None


def tries(study: StudyDeclaration, row: str, workspace: Workspace) -> list[Try]:
    """All tries of a row, in the order of their declaration.

    Those of other rows than the first have the first row's best settings; without them yet, their
    own alone.
    """
    tuning = study.tuning
    if tuning is None:
        return []
    base: Settings = {}
    if row != tuning.first:
        found = best(tries(study, tuning.first, workspace))
        base = found.settings if found else {}
    return [
        Try(run, settings, try_score(run, workspace) if is_trained(run, workspace) else None)
        for run, settings in zip(tries_of(study, row, base), tuning.tries[row], strict=True)
    ]


def best(found: list[Try]) -> Try | None:
    """The try with the largest score, the first of equal ones; None unless all are measured."""
    scored = [(each.score, each) for each in found if each.score is not None]
    if not scored or len(scored) < len(found):
        return None
    top = max(score for score, _ in scored)
    return next(each for score, each in scored if score == top)


def settled_file(study: StudyDeclaration, row: str) -> Path:
    """The file that the recipe of a row is based on."""
    return shipped_root() / "configs" / "pretrain" / f"{study.recipe_of(f'_settled_{row}')}.yaml"


def is_settled(study: StudyDeclaration, row: str, workspace: Workspace) -> bool | None:
    """Whether the row's recipe has the settings of its best try; None if that is not known yet."""
    found = best(tries(study, row, workspace))
    if found is None:
        return None
    run = StudyRun(study, "", row, 0)
    settings = tuple(found.settings.items())
    return run.fingerprint == StudyRun(study, "", row, 0, settings=settings).fingerprint


def settle(study: StudyDeclaration, workspace: Workspace) -> list[Path]:
    """Write the best try of each method into the recipes; returns the files that changed.

    Raises:
        ConfigError: The study has no tries, or some are not measured yet.
        StorageError: The disk refused, as in an installed package.
    """
    if study.tuning is None:
        raise ConfigError(f"The study {study.name} has no tries to settle anything by.")
    chosen: dict[str, tuple[Try, int]] = {}
    for row in study.tuning.tries:
        found = tries(study, row, workspace)
        winner = best(found)
        if winner is None:
            measured = sum(each.score is not None for each in found)
            raise ConfigError(
                f"{measured} of {len(found)} tries of {row} are measured. Nothing is settled "
                f"before all are: maskclip-bench study run {study.name} --stage tuning"
            )
        chosen[row] = (winner, len(found))
    changed = []
    for row, (winner, count) in chosen.items():
        path, text = settled_file(study, row), _settled_text(study, winner, count)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            storage.write_text(path, text)
            changed.append(path)
    return changed


def _settled_text(study: StudyDeclaration, winner: Try, count: int) -> str:
    assert study.tuning is not None and winner.score is not None
    values = yaml.safe_dump(nested(winner.settings), sort_keys=False)
    return (
        f"# Written by `maskclip-bench study settle {study.name}`: try {winner.run.number} of "
        f"{count} is the best\n# on the tuning world (seed {study.tuning.seed}), with a score of "
        f"{100 * winner.score:.2f}.\n{values}"
    )


def nested(settings: Settings) -> dict[str, Any]:
    """Overrides as a mapping.

    Example:
        >>> nested({"method.mlm_weight": 0.5, "optimizer.lr": 0.001})
        {'method': {'mlm_weight': 0.5}, 'optimizer': {'lr': 0.001}}
    """
    values: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return values
