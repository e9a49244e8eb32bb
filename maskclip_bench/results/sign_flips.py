"""P-value of "no difference" by flipping signs: exact wherever that is cheap.

If two rows do equally well, a group of samples favours one as often as the other, so the signs of
the groups' differences may be flipped at will (Fisher's randomization test). Where the differences
lie on a grid (counts of hits do), the distribution over all 2^G flips is found exactly from its
Fourier transform; for 0/1 outcomes without groups that is McNemar's exact test.

Shapes: G groups, R flips.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from maskclip_bench.results.bootstrap import FloatArray, IntArray, draw_signs

NUM_FLIPS = 9_999
MAX_ENUMERATED = 13
"""Up to this many groups that differ, all flips are tried."""
MAX_DRAWN = 2_000
"""With more groups than this off the grid, their sum is normal to better than 10,000 flips tell."""
MAX_GRID = 2_000_000
"""Widest distribution on a grid, in steps."""
SMALLEST = 1e-15
"""What is below it is rounding of the sums; no test proves anything with certainty."""
MAX_DENOMINATOR = 2_520
"""Grids of 1/1 to 1/2520 are looked for: hits, and means of a few draws."""


def sign_flip_p_value(differences: FloatArray, *, seed: int = 0) -> float:
    """Two-sided p-value of the sum of `differences` under random signs; `SMALLEST` at least.

    Args:
        differences: Sum of each group [G].
        seed: Of the drawn flips, where an exact distribution is out of reach; the p-value is then
            never below 1 / (R + 1).
    """
    differences = differences[np.abs(differences) > 1e-12 * max(1.0, np.abs(differences).max())]
    if len(differences) == 0:
        return 1.0
    largest = float(np.abs(differences).max())
    observed = abs(float(differences.sum()))
    if len(differences) <= MAX_ENUMERATED:
        return float(np.mean(np.abs(_all_sums(differences)) >= observed - 1e-9 * largest))
    steps = _on_grid(differences)
    if steps is not None:
        return max(_grid_p_value(steps), SMALLEST)
    if len(differences) > MAX_DRAWN:
        spread = float(np.sqrt((differences**2).sum()))
        return max(2 * float(special.ndtr(-observed / spread)), SMALLEST)
    extreme = total = 0
    for signs in draw_signs(len(differences), NUM_FLIPS, seed):
        extreme += int(np.count_nonzero(np.abs(signs @ differences) >= observed - 1e-9 * largest))
        total += len(signs)
    return (1 + extreme) / (1 + total)


def all_signs(num_groups: int) -> FloatArray:
    """Every assignment of signs [2^G, G]."""
    bits = np.arange(2**num_groups)[:, None] >> np.arange(num_groups) & 1
    return bits * 2.0 - 1.0


def _all_sums(differences: FloatArray) -> FloatArray:
    return all_signs(len(differences)) @ differences


def _on_grid(differences: FloatArray) -> IntArray | None:
    """The differences as whole steps of a common size, or None if there is no such size."""
    smallest = float(np.abs(differences).min())
    for denominator in (1, 2, 3, 4, 5, 6, 8, 10, 12, 20, 25, 30, 60, 120, 840, MAX_DENOMINATOR):
        scaled = differences / smallest * denominator
        steps = np.rint(scaled)
        if np.abs(steps).sum() > MAX_GRID:
            return None
        if np.abs(scaled - steps).max() < 1e-6:
            return np.abs(steps).astype(np.int64) * np.sign(steps).astype(np.int64)
    return None


def _grid_p_value(steps: IntArray) -> float:
    """Exact P(|sum of signs * steps| >= |sum of steps|) from the product of cosines."""
    observed = abs(int(steps.sum()))
    sizes, counts = np.unique(np.abs(steps), return_counts=True)
    total = int(np.abs(steps).sum())
    length = 2 * total + 1
    angles = 2 * np.pi * np.arange(total + 1) / length
    transform = np.ones(total + 1)
    for size, count in zip(sizes, counts, strict=True):
        transform *= np.cos(size * angles) ** count
    # P(sum = k) for k = 0..total; the distribution is symmetric.
    probability = np.fft.hfft(transform, length)[: total + 1] / length
    tail = float(np.clip(probability[observed:], 0, None).sum()) if observed else 1.0
    return min(1.0, 2 * tail if observed else 1.0)
