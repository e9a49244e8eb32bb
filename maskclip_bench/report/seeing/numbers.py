"""The numbers beside the pictures: purity, pointing, attention on objects, neighbours.

Each is a mean of outcomes, one row a patch or object, in groups of images; so interval and paired
test are those of every other number of this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from maskclip_bench.errors import DataError
from maskclip_bench.report.seeing.measures import (
    cluster,
    neighbour_hits,
    pointing_hit,
    purity_hits,
)
from maskclip_bench.report.seeing.patches import Sight, upsampled
from maskclip_bench.report.seeing.scenes import Scenes
from maskclip_bench.results.intervals import metric_interval
from maskclip_bench.results.paired import paired_test

VALUE = "value"
PER_IMAGE = 48
"""Patches of objects, and of the rest, that are drawn from an image."""
NUM_SHUFFLES = 5
"""Of the classes, for the purity of clusters that know nothing."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Labelled patches drawn from all images, the same places for all models of one grid.

    Attributes:
        image: Of each patch, [M].
        patch: Its index in the image, [M].
        classes: [M].
        is_object: [M].
    """

    image: NDArray[np.int64]
    patch: NDArray[np.int64]
    classes: NDArray[np.int64]
    is_object: NDArray[np.bool_]

    def ids(self) -> list[str]:
        """One a patch."""
        return [f"{i}#{p}" for i, p in zip(self.image, self.patch, strict=True)]


def draw_patches(scenes: Scenes, grid: int, *, seed: int = 0) -> Sample:
    """At most `PER_IMAGE` patches of objects and as many others from every image."""
    generator = np.random.default_rng([seed, grid])
    images, patches, classes = [], [], []
    for index in range(len(scenes)):
        found = scenes.patch_classes(index, grid)
        known = found >= 0
        things = np.zeros(len(found), dtype=bool)
        things[known] = scenes.things[found[known]]
        for wanted in (known & things, known & ~things):
            places = np.flatnonzero(wanted)
            chosen = np.sort(generator.permutation(places)[:PER_IMAGE])
            images.append(np.full(len(chosen), index))
            patches.append(chosen)
            classes.append(found[chosen])
    joined = np.concatenate(classes).astype(np.int64)
    return Sample(
        np.concatenate(images).astype(np.int64),
        np.concatenate(patches).astype(np.int64),
        joined,
        scenes.things[joined] if len(joined) else np.zeros(0, dtype=bool),
    )


def outcomes_of(sight: Sight, scenes: Scenes, *, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Outcome tables (sample_id, group, value, chance) by number; without masks there are none."""
    if scenes.masks is None:
        return {}
    sample = draw_patches(scenes, sight.grid, seed=seed)
    found = {}
    if sample.is_object.any():
        tokens = np.stack(
            [sight.tokens[i][p] for i, p in zip(sample.image, sample.patch, strict=True)]
        )
        found["purity"] = _purity(tokens, sample, seed)
        found["neighbours"] = _neighbours(tokens, sample)
    if sight.text_scores:
        found["pointing"] = _pointing(sight, scenes)
    if sight.attention:
        found["attention"] = _attention(sight, scenes)
    return {name: table for name, table in found.items() if len(table)}


def _purity(tokens: NDArray[Any], sample: Sample, seed: int) -> pd.DataFrame:
    chosen = np.flatnonzero(sample.is_object)
    classes = sample.classes[chosen]
    clusters = cluster(tokens[chosen], len(np.unique(classes)), seed=seed)
    generator = np.random.default_rng(seed)
    shuffled = [
        purity_hits(clusters, generator.permutation(classes)).mean() for _ in range(NUM_SHUFFLES)
    ]
    ids = sample.ids()
    return pd.DataFrame(
        {
            "sample_id": [ids[i] for i in chosen],
            "group": sample.image[chosen].astype(str),
            VALUE: purity_hits(clusters, classes).astype(float),
            "chance": float(np.mean(shuffled)),
        }
    )


def _neighbours(tokens: NDArray[Any], sample: Sample) -> pd.DataFrame:
    chosen = np.flatnonzero(sample.is_object)
    shares, _ = neighbour_hits(tokens, sample.classes, sample.image, chosen)
    num_classes = int(sample.classes.max()) + 1
    counts = np.bincount(sample.classes, minlength=num_classes)
    own = np.zeros((int(sample.image.max()) + 1, num_classes))
    np.add.at(own, (sample.image, sample.classes), 1)
    image, classes = sample.image[chosen], sample.classes[chosen]
    others = len(sample.classes) - own.sum(1)[image]
    chance = (counts[classes] - own[image, classes]) / np.maximum(others, 1)
    ids = sample.ids()
    return pd.DataFrame(
        {
            "sample_id": [ids[i] for i in chosen],
            "group": image.astype(str),
            VALUE: shares,
            "chance": chance,
        }
    )


def _pointing(sight: Sight, scenes: Scenes) -> pd.DataFrame:
    rows = []
    assert scenes.masks is not None
    for index, mask in enumerate(scenes.masks):
        for name in scenes.objects(index):
            scores = upsampled(
                np.ascontiguousarray(sight.text_scores[index][:, name]), sight.grid, mask.shape
            )
            inside = mask == name
            rows.append(
                (f"{index}#{name}", str(index), pointing_hit(scores, inside), inside.mean())
            )
    return pd.DataFrame(rows, columns=["sample_id", "group", VALUE, "chance"])


def _attention(sight: Sight, scenes: Scenes) -> pd.DataFrame:
    """One row a window that shows objects and something else."""
    rows = []
    side = sight.grid // sight.windows  # patches along a side of a window
    for index in range(len(scenes)):
        classes = scenes.patch_classes(index, sight.grid)
        things = (classes >= 0) & scenes.things[np.maximum(classes, 0)]
        boxes = things.reshape(sight.windows, side, sight.windows, side).transpose(0, 2, 1, 3)
        maps = sight.attention[index].reshape(sight.windows, side, sight.windows, side)
        maps = maps.transpose(0, 2, 1, 3)
        for row in range(sight.windows):
            for column in range(sight.windows):
                inside = boxes[row, column]
                if inside.any() and not inside.all():
                    hit = pointing_hit(maps[row, column], inside)
                    name = f"{index}#{row},{column}"
                    rows.append((name, str(index), hit, inside.mean()))
    return pd.DataFrame(rows, columns=["sample_id", "group", VALUE, "chance"])


def number(table: pd.DataFrame) -> dict[str, Any]:
    """Value, 95 % interval by image, chance and counts of an outcome table."""
    interval = metric_interval(table, VALUE, "mean")
    assert interval is not None
    return {
        "value": float(table[VALUE].mean()),
        "low": interval.low,
        "high": interval.high,
        "chance": float(table["chance"].mean()),
        "num_samples": interval.num_samples,
        "num_images": interval.num_groups,
    }


def difference(table: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, float] | None:
    """The paired difference to another model's outcomes; None where their patches differ."""
    try:
        test = paired_test(table, baseline, VALUE)
    except DataError:
        return None
    return {
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "p_value": test.p_value,
    }
