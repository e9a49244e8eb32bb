"""What dense protocols find on each image: read from the job's folder, kept with the record.

S images, C classes.

Columns of the outcome table (one row an image; None on the images of other splits):

- A mean ratio (mIoU, recalls): `{metric}.numerator` and `{metric}.denominator`, lists [C]; the
  value is the ratio of the sums, averaged over classes.
- An AP of boxes: `box_ap.scores` and `.classes`, lists with one entry a detection of the image;
  `box_ap.hits` and `.ignored`, likewise, and `.objects`, a list [C]. The last three also for
  objects of one size, `box_ap_small.hits` and so on. Masks: `mask_ap`. Splits of `also_test` have
  columns of their own, with the suffix of their metrics. The value is `CocoAP` of the entries of
  all images (of the images drawn, in a bootstrap).

Bit t of an entry of `.hits` is set where the detection is right at the t-th of the IoU thresholds
0.5, 0.55, ... 0.95; of `.ignored`, where it counts neither as right nor as wrong.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from maskclip_bench.backbones.dense_job import DenseFolder
from maskclip_bench.errors import DataError, JobError
from maskclip_bench.results.outcome_columns import ratio_column_names


@dataclass(frozen=True)
class SplitResult:
    """What a job found on one split.

    Attributes:
        suffix: Of its metrics; empty for the test split itself.
        split: The data set's own name.
        scores: The toolbox's numbers, in its own units.
        outcomes: Arrays [S, ...] by name, one entry an image.
    """

    suffix: str
    split: str
    scores: dict[str, float]
    outcomes: dict[str, NDArray[Any]]


def read_split(folder: DenseFolder, split: str) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """Scores and outcomes that a job wrote.

    Raises:
        JobError: They are not there, or damaged.
    """
    try:
        scores = json.loads(folder.scores(split).read_text(encoding="utf-8"))
        with np.load(folder.outcomes(split), allow_pickle=False) as file:
            outcomes = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError) as error:
        raise JobError(
            f"The results of {split!r} in {folder.path} cannot be read ({error}). Delete that "
            "folder and run the suite again."
        ) from error
    return scores, outcomes


def sample_names(splits: Sequence[SplitResult]) -> list[str]:
    """Ids of all tested images, split by split, unique across splits."""
    return [f"{part.split}/{name}" for part in splits for name in part.outcomes["sample_id"]]


def spread(
    splits: Sequence[SplitResult], values: Mapping[str, NDArray[Any]]
) -> list[list[int] | None]:
    """One list column: `values` [S, C] of the splits that are keys, None elsewhere."""
    column: list[list[int] | None] = []
    for part in splits:
        num_images = len(part.outcomes["sample_id"])
        rows = values.get(part.split)
        column += [None] * num_images if rows is None else [row.tolist() for row in rows]
    return column


def suffixed(name: str, suffix: str) -> str:
    """Name of a metric on a split of `also_test`."""
    return f"{name}_{suffix}" if suffix else name


def check_agreement(name: str, ours: float, theirs: float, *, tolerance: float) -> None:
    """Check a number made of the outcomes against the toolbox's.

    Raises:
        DataError: They differ by more than the toolbox's rounding.
    """
    if abs(ours - theirs) > tolerance:
        raise DataError(
            f"{name}: the outcomes give {ours:.6f} and the toolbox says {theirs:.6f}. The files in "
            "the work folder are of different runs; delete it and run again."
        )


def outcome_table(
    splits: list[SplitResult],
    columns: dict[str, dict[str, tuple[NDArray[Any], NDArray[Any]]]],
) -> pd.DataFrame:
    """One row an image; two list columns a metric, None on the images of other splits."""
    names = sample_names(splits)
    table: dict[str, Any] = {"sample_id": names, "group": names}
    for metric, by_split in columns.items():
        for position, column in enumerate(ratio_column_names(metric)):
            table[column] = spread(
                splits, {split: lists[position] for split, lists in by_split.items()}
            )
    return pd.DataFrame(table)


KINDS = {"bbox": "box", "segm": "mask"}
"""What a job compared -> the word in our metrics."""

DETECTIONS = ("scores", "classes")
"""Columns of an AP with one entry a detection, for objects of all sizes."""

MATCHES = ("hits", "ignored")
"""Columns of an AP with one entry a detection, which differ with the size of the objects."""

SIZES = ("", "small", "medium", "large")


def match_columns(splits: Sequence[SplitResult]) -> dict[str, list[Any]]:
    """Columns of the APs on all images of `splits`; without those that a job did not store."""
    columns: dict[str, list[Any]] = {}
    num_images = [len(part.outcomes["sample_id"]) for part in splits]
    for place, part in enumerate(splits):
        before, after = sum(num_images[:place]), sum(num_images[place + 1 :])
        for kind, ours in KINDS.items():
            for name, rows in _split_columns(part, kind, f"{ours}_ap").items():
                columns[name] = [*[None] * before, *rows, *[None] * after]
    return columns


def _split_columns(part: SplitResult, kind: str, metric: str) -> dict[str, list[Any]]:
    """Columns of one split and of boxes or masks."""
    arrays = part.outcomes
    if f"{kind}_images" not in arrays:
        return {}
    image_of = arrays[f"{kind}_images"]
    order = np.argsort(image_of, kind="stable")
    ends = np.searchsorted(image_of[order], np.arange(len(arrays["sample_id"]) + 1))

    def by_image(values: NDArray[Any]) -> list[Any]:
        return [values[order][start:stop].tolist() for start, stop in itertools.pairwise(ends)]

    whole = suffixed(metric, part.suffix)
    columns = {f"{whole}.{name}": by_image(arrays[f"{kind}_{name}"]) for name in DETECTIONS}
    for size in SIZES:
        stored = f"{kind}_{size}_" if size else f"{kind}_"
        if f"{stored}objects" in arrays:
            name = suffixed(f"{metric}_{size}" if size else metric, part.suffix)
            columns |= {f"{name}.{each}": by_image(arrays[f"{stored}{each}"]) for each in MATCHES}
            columns[f"{name}.objects"] = arrays[f"{stored}objects"].tolist()
    return columns


def nothing_found(part: SplitResult) -> SplitResult:
    """A split without any detection, of which a job stores no matches, with empty ones."""
    nothing = np.zeros(0, np.int64)
    empty = {
        f"{kind}_{name}": nothing for kind in KINDS for name in ("images", *DETECTIONS, *MATCHES)
    }
    objects = {f"{kind}_objects": part.outcomes["num_objects"] for kind in KINDS}
    return replace(part, outcomes={**part.outcomes, **empty, **objects})
