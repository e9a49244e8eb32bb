from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from maskclip_bench.errors import DataError
from maskclip_bench.results.influence import aligned, influence_of, resampled, standard_error
from maskclip_bench.results.measurement import statistic_value
from maskclip_bench.results.outcome_columns import Statistic
from tests.results.detections import drawn_detections


def table(groups: np.ndarray, **columns: object) -> pd.DataFrame:
    ids = [f"s{index}" for index in range(len(groups))]
    return pd.DataFrame({"sample_id": ids, "group": [f"g{g}" for g in groups], **columns})


def examples() -> list[tuple[pd.DataFrame, Statistic, list[str]]]:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 3)
    hits = (random.random(90) < 0.6).astype(float)
    hits[5] = np.nan
    top = random.integers(0, 5, (90, 4))
    lists = {
        "m.numerator": list(top),
        "m.denominator": list(top + random.integers(1, 5, (90, 4))),
    }
    there = np.where(np.arange(90) % 2, hits, np.nan)
    back = np.where(np.arange(90) % 2, np.nan, hits)
    return [
        (table(groups, m=hits), "mean", []),
        (table(groups, m=hits, label=groups % 4), "mean_per_class", []),
        (table(groups, **lists), "mean_ratio", []),
        (table(groups, there=there, back=back), "mean_of_columns", ["there", "back"]),
        (table(groups, m=random.random(90), label=np.arange(90) % 2), "roc_auc", []),
        (table(groups, logs=np.log(random.random(90))), "geometric_mean", ["logs"]),
        (
            table(
                groups, s=list(random.normal(size=(90, 2))), l=list(random.integers(0, 2, (90, 2)))
            ),
            "multi_label_ap",
            ["s", "l"],
        ),
        (drawn_detections(random, num_images=90), "coco_ap", ["box_ap", "box_ap"]),
    ]


@pytest.mark.parametrize(("outcomes", "statistic", "columns"), examples())
def test_influence__is_what_leaving_a_group_out_changes(
    outcomes: pd.DataFrame, statistic: Statistic, columns: list[str]
) -> None:
    """To first order in the group's share: the jackknife, G times smaller steps."""
    influence = influence_of(outcomes, "m", statistic, columns)
    value = statistic_value(outcomes, "m", statistic, columns)
    assert value is not None
    assert abs(influence.sum()) < 1e-9
    left_out = pd.Series(
        {
            group: value - (statistic_value(rest, "m", statistic, columns) or 0.0)
            for group in influence.index
            for rest in [outcomes[outcomes["group"] != group]]
        }
    )
    assert np.corrcoef(influence, left_out[influence.index])[0, 1] > (
        0.9 if statistic == "coco_ap" else 0.99
    )
    assert np.sqrt((left_out**2).sum()) == pytest.approx(
        standard_error(influence.to_numpy()), rel=0.2
    )


def test_influence__of_a_statistic_without_outcomes() -> None:
    with pytest.raises(ValueError, match="'m' has no per-sample outcomes"):
        influence_of(table(np.arange(2), m=[0.0, 1.0]), "m", "none")


def test_aligned__other_groups_are_refused() -> None:
    first = pd.Series([0.1, -0.1], index=["a", "b"])
    assert aligned([first, first]).shape == (2, 2)
    with pytest.raises(DataError, match="different groups of samples: 2 and 2"):
        aligned([first, pd.Series([0.1, -0.1], index=["a", "c"])])


@pytest.mark.parametrize("groups", [7, 8, 1000])
def test_resampled__spread_and_correlation_are_those_of_the_influence(groups: int) -> None:
    random = np.random.default_rng(1)
    one = random.normal(size=(groups, 1))
    influence = np.concatenate([one, -one, random.normal(size=(groups, 1))], axis=1) / groups
    influence -= influence.mean(axis=0)
    drawn = resampled(np.array([0.5, 0.6, 0.7]), influence, num_resamples=20_000)
    assert drawn.shape == (20_000, 3)
    assert drawn.mean(axis=0) == pytest.approx([0.5, 0.6, 0.7], abs=0.02)
    assert drawn.std(axis=0) == pytest.approx(standard_error(influence), rel=0.05)
    assert np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1] == pytest.approx(-1.0)
    again = resampled(np.array([0.5, 0.6, 0.7]), influence, num_resamples=20_000)
    assert np.array_equal(drawn, again)
