from __future__ import annotations

import doctest

import numpy as np
import pytest

from maskclip_bench.results import power
from maskclip_bench.results.power import (
    smallest_difference_after,
    smallest_difference_before,
)
from maskclip_bench.results.sign_flips import sign_flip_p_value


def test_examples() -> None:
    assert doctest.testmod(power).failed == 0


@pytest.mark.parametrize(("samples", "disagreement"), [(400, 0.3), (1500, 0.1)])
def test_before__four_of_five_simulated_tests_are_clear(samples: int, disagreement: float) -> None:
    difference = smallest_difference_before(samples, disagreement=disagreement)
    random = np.random.default_rng(0)
    chances = [(disagreement + difference) / 2, (disagreement - difference) / 2, 1 - disagreement]
    found = [
        sign_flip_p_value(random.choice([1.0, -1.0, 0.0], size=samples, p=chances)) <= 0.05
        for _ in range(300)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)


def test_after__four_of_five_simulated_tests_are_clear() -> None:
    """The spread of one measurement tells what a true difference must be."""
    random = np.random.default_rng(1)
    samples = 500
    noise = random.normal(size=(2, samples)) * 0.3
    influence = (noise - noise.mean(axis=1, keepdims=True)) / samples
    difference = smallest_difference_after(influence[0], influence[1])
    found = [
        sign_flip_p_value(difference + random.normal(size=samples) * 0.3 * np.sqrt(2)) <= 0.05
        for _ in range(150)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.1)


def test_before__more_comparisons_need_more_and_tiny_sets_show_nothing() -> None:
    alone = smallest_difference_before(1000, disagreement=0.2)
    assert smallest_difference_before(1000, disagreement=0.2, num_comparisons=30) > alone
    assert smallest_difference_before(5, disagreement=0.2) == 1.0


@pytest.mark.parametrize(("samples", "disagreement"), [(0, 0.2), (10, 0.0), (10, 1.5)])
def test_before__what_is_no_plan(samples: int, disagreement: float) -> None:
    with pytest.raises(ValueError, match="it needs a sample, and shares above 0"):
        smallest_difference_before(samples, disagreement=disagreement)
