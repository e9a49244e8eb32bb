from __future__ import annotations

import numpy as np
import pytest

from maskclip_bench.results.variance_split import VarianceSplit, variance_split


def test_split__finds_the_simulated_parts() -> None:
    """Scores = level + sample + seed + interaction; means over many simulated benchmarks."""
    random = np.random.default_rng(0)
    seeds, groups, of_seed, of_sample, of_both = 4, 200, 0.02, 0.3, 0.2
    found = []
    for _ in range(300):
        table = (
            0.5
            + random.normal(size=(seeds, 1)) * of_seed
            + random.normal(size=(1, groups)) * of_sample
            + random.normal(size=(seeds, groups)) * of_both
        )
        values = table.mean(axis=1)
        influences = (table - values[:, None]) / groups
        found.append(variance_split(values.tolist(), list(influences)))
    assert np.mean([each.samples for each in found]) == pytest.approx(
        (of_sample**2 + of_both**2) / groups, rel=0.1
    )
    seeds_found = np.mean([each.seeds or 0.0 for each in found])
    assert seeds_found == pytest.approx(of_seed**2, rel=0.15)


def test_split__of_draws_and_of_one_seed() -> None:
    influence = np.array([0.1, -0.1])
    found = variance_split([0.5], [influence], draws=[[0.4, 0.6]])
    assert found == VarianceSplit(pytest.approx(0.04), None, pytest.approx(0.01))  # type: ignore[arg-type]
    assert found.shares() == {"samples": pytest.approx(0.8), "shots": pytest.approx(0.2)}


def test_split__nothing_varies() -> None:
    found = variance_split([0.5, 0.5], [np.zeros(3)] * 2)
    assert found == VarianceSplit(0.0, 0.0, None)
    assert found.shares() == {}


@pytest.mark.parametrize(
    ("values", "number", "draws"), [([], 0, []), ([0.5], 2, []), ([0.5], 1, [[], []])]
)
def test_split__numbers_of_seeds_differ(
    values: list[float], number: int, draws: list[list[float]]
) -> None:
    with pytest.raises(ValueError, match="needs one of each for every seed"):
        variance_split(values, [np.zeros(2)] * number, draws=draws)
