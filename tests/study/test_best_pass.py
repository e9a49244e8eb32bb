from __future__ import annotations

import pandas as pd

from maskclip_bench.study.best_pass import best_pass_table, values_at_best_pass
from maskclip_bench.study.declaration import StudyDeclaration

KEY = "zero_shot_classification/demo_long_objects/top1_accuracy"


def tables(scores: dict[str, list[float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs whose best pass is the second of two; there they have the scores, a value a seed."""
    runs, curves = [], []
    for row, values in scores.items():
        for seed, value in enumerate(values):
            runs.append({"row": row, "seed": seed, "best_pass": 20.0})
            for passes, at in ((10, 0.9), (20, value)):
                curves.append(
                    {"row": row, "seed": seed, "passes": passes, "metric": KEY, "value": at}
                )
    return pd.DataFrame(runs), pd.DataFrame(curves)


def test_values__at_the_best_pass_and_not_at_a_better_looking_one(study: StudyDeclaration) -> None:
    runs, curves = tables({"clip": [0.3], "maskclip": [0.4]})
    runs.loc[0, "best_pass"] = None
    assert values_at_best_pass(study, runs, curves) == {KEY: {"maskclip": {0: 0.4}}}


def test_table__mean_spread_and_a_star_where_it_is_clear(study: StudyDeclaration) -> None:
    scores = {"clip": [0.30, 0.40, 0.35], "maskclip": [0.35, 0.4501, 0.4002]}
    lines = best_pass_table(study, *tables(scores)).splitlines()
    assert lines[0] == "| row | best pass | Zero-shot |"
    assert lines[2] == "| clip | 20, 20, 20 | 35.0 ± 5.0 |"
    assert lines[3] == "| maskclip | 20, 20, 20 | 40.0 ± 5.0 (+5.0*) |"


def test_table__one_seed_and_other_seeds_have_no_test(study: StudyDeclaration) -> None:
    one = best_pass_table(study, *tables({"clip": [0.3], "maskclip": [0.4]}))
    assert "| maskclip | 20 | 40.0 |" in one
    uneven = best_pass_table(study, *tables({"clip": [0.3, 0.3], "maskclip": [0.4]}))
    assert "| maskclip | 20 | 40.0 |" in uneven and "(" not in uneven


def test_table__nothing_measured(study: StudyDeclaration) -> None:
    runs, curves = tables({"clip": [0.3]})
    runs["best_pass"] = None
    assert best_pass_table(study, runs, curves) == "No run has its checkpoints measured yet."
