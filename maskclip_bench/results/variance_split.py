"""Where the noise of a score comes from: test samples, drawn shots, training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskclip_bench.results.bootstrap import FloatArray


@dataclass(frozen=True)
class VarianceSplit:
    """Variances of the score of one training run, of fractions.

    Attributes:
        samples: Of the choice of the test samples.
        seeds: Of training with another seed; None with one seed.
        shots: Of the shots that were drawn, of a mean over the draws; None without draws. They are
            part of `seeds` where every seed drew its own.
    """

    samples: float
    seeds: float | None = None
    shots: float | None = None

    def shares(self) -> dict[str, float]:
        """Share of each known source in their sum; empty if nothing varies."""
        known = {"samples": self.samples, "shots": self.shots, "seeds": self.seeds}
        found = {name: value for name, value in known.items() if value is not None}
        total = sum(found.values())
        return {name: value / total for name, value in found.items()} if total > 0 else {}


def variance_split(
    values: Sequence[float],
    influences: Sequence[FloatArray],
    *,
    draws: Sequence[Sequence[float]] = (),
) -> VarianceSplit:
    """Split the variance of a score.

    Seeds and samples are crossed, so the spread between seeds on one test set is that of training
    plus that of the interaction of both, which a larger test set would make smaller; it is taken
    out (two-way analysis of variance with random effects, Searle, Casella and McCulloch 1992).

    Args:
        values: Score of each seed [K].
        influences: Of the same groups on the score of each seed, K arrays [G].
        draws: Of each seed, the score of each draw of shots.

    Raises:
        ValueError: Numbers of seeds differ, or there is none.
    """
    if not values or len(values) != len(influences) or (draws and len(draws) != len(values)):
        raise ValueError(
            f"{len(values)} values, {len(influences)} influences and {len(draws)} draws; needs one "
            "of each for every seed (draws may be left out)."
        )
    table = np.asarray(influences, dtype=np.float64)  # [K, G]
    num_seeds, num_groups = table.shape
    correction = num_groups / max(num_groups - 1, 1)
    samples = float((table**2).sum(axis=1).mean() * correction)
    shots = None
    of_draws = [np.var(draw, ddof=1) / len(draw) for draw in draws if len(draw) > 1]
    if of_draws:
        shots = float(np.mean(of_draws))
    if num_seeds < 2:
        return VarianceSplit(samples, None, shots)
    residual = table - table.mean(axis=0)
    interaction = float((residual**2).sum() * correction / (num_seeds - 1))
    between = float(np.var(values, ddof=1))
    return VarianceSplit(samples, max(0.0, between - interaction), shots)
