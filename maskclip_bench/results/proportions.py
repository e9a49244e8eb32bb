"""Intervals of a proportion that keep their width at 0 and 1."""

from __future__ import annotations

import math

from scipy import optimize, special

CONFIDENCE = 0.95


def mid_p_interval(
    successes: int, trials: int, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Exact binomial interval with half the probability of the observed count (mid-P).

    It inverts the exact binomial test. Clopper and Pearson's interval counts the observed outcome
    in full and covers too often; Wilson's covers too seldom near the ends (91 % at p = .99, n = 50)
    (Agresti and Gottard 2007, Comput. Stat. Data Anal. 51).

    Args:
        successes: Hits.
        trials: Independent samples, at least one.
        confidence: Nominal coverage.

    Raises:
        ValueError: The counts are none of a proportion.

    Example:
        >>> [round(end, 4) for end in mid_p_interval(50, 50)]
        [0.9418, 1.0]
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is no proportion; use 0 <= hits <= samples.")
    tail = (1 - confidence) / 2

    def above(p: float) -> float:
        """P(X > successes) + P(X = successes) / 2, minus the tail."""
        more = special.bdtrc(successes, trials, p)
        as_many = special.bdtrc(successes - 1, trials, p) if successes else 1.0
        return float((more + as_many) / 2) - tail

    low = optimize.brentq(above, 0.0, 1.0) if successes else 0.0
    high = (
        optimize.brentq(lambda p: above(p) - (1 - 2 * tail), 0.0, 1.0)
        if successes < trials
        else 1.0
    )
    return float(low), float(high)


def wilson_interval(
    value: float,
    effective_size: float,
    *,
    freedom: float = math.inf,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Wilson's score interval of a fraction known as well as from `effective_size` samples.

    Args:
        value: The fraction.
        effective_size: Independent 0/1 samples that would know it as well: value * (1 - value) /
            variance.
        freedom: Degrees of freedom of the variance; Student's t takes the place of the normal.
        confidence: Nominal coverage.

    Example:
        >>> [round(end, 4) for end in wilson_interval(0.5, 100)]
        [0.4038, 0.5962]
    """
    tail = 0.5 + confidence / 2
    z = float(special.ndtri(tail) if math.isinf(freedom) else special.stdtrit(freedom, tail))
    share = z * z / effective_size
    center = (value + share / 2) / (1 + share)
    spread = math.sqrt(value * (1 - value) / effective_size + share / effective_size / 4)
    half = z * spread / (1 + share)
    low = 0.0 if value <= 0 else max(0.0, min(center - half, value))
    high = 1.0 if value >= 1 else min(1.0, max(center + half, value))
    return low, high
