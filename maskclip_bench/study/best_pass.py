"""Scores of every row at its own best pass, chosen on splits that are not reported."""

from __future__ import annotations

import statistics

import pandas as pd

from maskclip_bench.results.paired import compare_seeds, holm
from maskclip_bench.results.table_model import SIGNIFICANCE, signed_points
from maskclip_bench.study.declaration import StudyDeclaration

Values = dict[str, dict[str, dict[int, float]]]
"""metric -> row -> seed -> value."""


def values_at_best_pass(
    study: StudyDeclaration, runs: pd.DataFrame, curves: pd.DataFrame
) -> Values:
    """The shown metrics of each run at its best pass; runs without one are left out.

    Args:
        study: Whose.
        runs: `runs.csv`.
        curves: `curves.csv`.
    """
    shown = study.curve.show if study.curve else []
    found: Values = {part.key: {} for part in shown}
    for run in runs[runs["best_pass"].notna()].to_dict("records"):
        same = (curves["row"] == run["row"]) & (curves["seed"] == run["seed"])
        there = curves[same & ((curves["passes"] - run["best_pass"]).abs() < 1e-2)]
        for line in there.to_dict("records"):
            if line["metric"] in found:
                rows = found[line["metric"]].setdefault(str(run["row"]), {})
                rows[int(run["seed"])] = float(line["value"])
    return found


def best_pass_table(study: StudyDeclaration, runs: pd.DataFrame, curves: pd.DataFrame) -> str:
    """These scores as Markdown: mean and standard deviation over seeds, difference to the baseline.

    Differences are paired by seed and corrected for all of the table (Holm); a star is for a
    corrected p of at most 0.05. With one seed a row there is no test.
    """
    values = values_at_best_pass(study, runs, curves)
    tests = _tests(study, values)
    shown = [part for part in (study.curve.show if study.curve else []) if values[part.key]]
    if not shown:
        return "No run has its checkpoints measured yet."
    present = [row for row in study.rows if any(row in values[part.key] for part in shown)]
    lines = [
        f"| row | best pass | {' | '.join(part.title for part in shown)} |",
        f"|{' --- |' * (len(shown) + 2)}",
    ]
    for row in present:
        passes = runs[(runs["row"] == row) & runs["best_pass"].notna()]["best_pass"]
        texts = [_cell(values[part.key].get(row, {}), tests.get((part.key, row))) for part in shown]
        listed = ", ".join(f"{each:g}" for each in passes)
        lines.append(f"| {row} | {listed} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _tests(study: StudyDeclaration, values: Values) -> dict[tuple[str, str], tuple[float, float]]:
    """(metric, row) -> (difference to the baseline, corrected p), where the seeds are the same."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for metric, rows in values.items():
        base = rows.get(study.baseline, {})
        for row, ours in rows.items():
            if row == study.baseline or ours.keys() != base.keys() or len(ours) < 2:
                continue
            seeds = sorted(ours)
            others = [
                [other[seed] for seed in seeds]
                for name, other in rows.items()
                if name not in (row, study.baseline) and other.keys() == base.keys()
            ]
            test = compare_seeds(
                [ours[seed] for seed in seeds], [base[seed] for seed in seeds], others=others
            )
            found[metric, row] = (test.difference, test.p_value)
    adjusted = holm([p for _, p in found.values()])
    return {
        key: (difference, p)
        for (key, (difference, _)), p in zip(found.items(), adjusted, strict=True)
    }


def _cell(values: dict[int, float], test: tuple[float, float] | None) -> str:
    if not values:
        return "–"
    text = f"{100 * statistics.fmean(values.values()):.1f}"
    if len(values) > 1:
        text += f" ± {100 * statistics.stdev(values.values()):.1f}"
    if test is not None:
        star = "*" if test[1] <= SIGNIFICANCE else ""
        text += f" ({signed_points(test[0], 1)}{star})"
    return text
