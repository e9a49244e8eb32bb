"""What the interval and the paired test of a box AP cost on a data set of COCO's size.

    python benchmarks/ap_interval.py --images 5000 --classes 80 --detections 60

Detections are drawn as matched already: about 7 objects an image, three of four found. Times are of
the processor, so that other processes do not matter.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from maskclip_bench.results.intervals import metric_interval
from maskclip_bench.results.measurement import statistic_value
from maskclip_bench.results.paired import paired_test

COLUMNS = ("box_ap", "box_ap")


def drawn(seed: int, images: int, classes: int, detections: int) -> pd.DataFrame:
    """Outcome columns of a detector (see `maskclip_bench.tasks.dense_outcomes`)."""
    world, random = np.random.default_rng(0), np.random.default_rng([1, seed])
    frequency = world.dirichlet(np.ones(classes))
    rows = []
    for _ in range(images):
        objects = world.multinomial(world.poisson(7), frequency)
        found = random.binomial(objects, 0.75)
        right = np.repeat(np.arange(classes), found)
        wrong = random.choice(classes, size=max(detections - len(right), 0), p=frequency)
        hits = (1 << random.integers(1, 11, len(right))) - 1
        scores = np.concatenate([random.normal(2, 1, len(right)), random.normal(0, 1, len(wrong))])
        rows.append(
            (
                scores.tolist(),
                [*right.tolist(), *wrong.tolist()],
                [*hits.tolist(), *[0] * len(wrong)],
                [0] * len(scores),
                objects.tolist(),
            )
        )
    ids = [str(index) for index in range(images)]
    parts = ("scores", "classes", "hits", "ignored", "objects")
    lists = {f"box_ap.{part}": [row[place] for row in rows] for place, part in enumerate(parts)}
    return pd.DataFrame({"sample_id": ids, "group": ids, **lists})


def timed(what: str, function: Callable[[], object]) -> None:
    """Print the processor time of a call, and the peak memory of the process so far."""
    start = time.process_time()
    found = function()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.process_time() - start:.1f} s, peak {peak:.1f} GiB, {found}", flush=True)


def main() -> None:
    """Draw two detectors and time everything that is made of their outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--detections", type=int, default=60, help="an image, right ones included")
    parser.add_argument("--resamples", type=int, default=2000)
    given = parser.parse_args()
    tables = [drawn(seed, given.images, given.classes, given.detections) for seed in range(2)]
    timed("value", lambda: statistic_value(tables[0], "box_ap", "coco_ap", COLUMNS))
    timed(
        f"interval of {given.resamples} resamples",
        lambda: metric_interval(
            tables[0], "box_ap", "coco_ap", COLUMNS, num_resamples=given.resamples
        ),
    )
    timed(
        "paired test",
        lambda: paired_test(*tables, "box_ap", statistic="coco_ap", columns=COLUMNS),
    )
    size = len(tables[0].to_parquet(None, index=False, compression="zstd"))
    print(f"outcomes of the file, objects of all sizes only: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
