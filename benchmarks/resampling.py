"""Resampling: 10,000 resamples of 50,000 outcomes should take less than 2 s of one core.

python benchmarks/resampling.py
"""

from __future__ import annotations

import time

import numpy as np

from maskclip_bench.results.influence import resampled

NUM_OUTCOMES, NUM_RESAMPLES = 50_000, 10_000


def main() -> None:
    """Print the seconds for one row, and for six rows that share their resamples."""
    random = np.random.default_rng(0)
    for num_rows in (1, 6):
        outcomes = random.random((NUM_OUTCOMES, num_rows))
        values = outcomes.mean(axis=0)
        influence = (outcomes - values) / NUM_OUTCOMES
        began, cpu = time.perf_counter(), time.process_time()
        drawn = resampled(values, influence, num_resamples=NUM_RESAMPLES)
        took, used = time.perf_counter() - began, time.process_time() - cpu
        expected = outcomes.std(axis=0) / np.sqrt(NUM_OUTCOMES)
        assert np.allclose(drawn.std(axis=0), expected, rtol=0.05)
        print(f"{num_rows} rows: {took:.2f} s ({used:.2f} s of a core)")


if __name__ == "__main__":
    main()
