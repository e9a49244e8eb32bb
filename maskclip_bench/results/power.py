"""The smallest difference that a column can show: before it is measured, and after.

Both answer: how large must a true difference be so that the test calls it clear in `power` of all
cases? Smaller ones are not excluded by a missing star.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special

from maskclip_bench.results.bootstrap import FloatArray
from maskclip_bench.results.influence import standard_error
from maskclip_bench.results.table_model import SIGNIFICANCE

POWER = 0.8


def smallest_difference_before(
    num_samples: int,
    *,
    disagreement: float,
    num_comparisons: int = 1,
    power: float = POWER,
    significance: float = SIGNIFICANCE,
) -> float:
    """For hits and misses, paired by sample, before anything is measured.

    Connor's formula for McNemar's test (1987, Biometrics 43), solved for the difference.

    Args:
        num_samples: Independent samples (groups, where samples share one).
        disagreement: Share of the samples on which one of the two rows is right and the other
            wrong. Two rows of accuracy p with unrelated errors disagree on 2 p (1 - p); related
            models on less.
        num_comparisons: Tests that are corrected together (the strictest step of Holm's method).
        power: Wanted chance to see the difference.
        significance: Of the corrected test.

    Returns:
        A fraction; 1.0 where not even the largest possible difference, `disagreement`, would show.

    Example:
        >>> round(smallest_difference_before(1000, disagreement=0.2), 3)
        0.04

    Raises:
        ValueError: There are no samples, or a share lies outside of 0..1.
    """
    if num_samples < 1 or not 0 < disagreement <= 1 or not 0 < power < 1:
        raise ValueError(
            f"{num_samples} samples, disagreement {disagreement:g}, power {power:g}: it needs a "
            "sample, and shares above 0 and up to 1."
        )
    critical = float(special.ndtri(1 - significance / 2 / max(num_comparisons, 1)))
    wanted = float(special.ndtri(power))

    def lacking(difference: float) -> float:
        spread = math.sqrt(max(disagreement - difference**2, 0.0))
        needed = critical * math.sqrt(disagreement) + wanted * spread
        return difference * math.sqrt(num_samples) - needed

    if lacking(disagreement) < 0:
        return 1.0
    return float(optimize.brentq(lacking, 0.0, disagreement))


def smallest_difference_after(
    influence_a: FloatArray,
    influence_b: FloatArray,
    *,
    num_comparisons: int = 1,
    power: float = POWER,
    significance: float = SIGNIFICANCE,
) -> float:
    """For two rows that were measured, from the influence of the same groups on each [G].

    Args:
        influence_a: Of one row (`influence.influence_of`).
        influence_b: Of the other.
        num_comparisons: Tests that are corrected together.
        power: Wanted chance to see the difference.
        significance: Of the corrected test.
    """
    groups = len(influence_a)
    error = float(standard_error(np.asarray(influence_a) - np.asarray(influence_b)))
    return _of_error(error, groups - 1, num_comparisons, power, significance)


def _of_error(
    error: float, freedom: int, num_comparisons: int, power: float, significance: float
) -> float:
    if freedom < 1:
        return 1.0
    critical = float(special.stdtrit(freedom, 1 - significance / 2 / max(num_comparisons, 1)))
    return min(1.0, (critical + float(special.stdtrit(freedom, power))) * error)
