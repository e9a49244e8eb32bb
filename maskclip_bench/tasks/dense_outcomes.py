"""What dense protocols find on each image: read from the job's folder, kept with the record.

S images, C classes.

Columns of the outcome table (one row an image; None on the images of other splits):

- A mean ratio (mIoU, recalls): `{metric}.numerator` and `{metric}.denominator`, lists [C]; the
  value is the ratio of the sums, averaged over classes.
- `box_ap`, `mask_ap`: `{metric}.scores`, `.classes`, `.hits`, `.ignored`, lists with one entry a
  detection of the image, and `.objects`, a list [C]; the value is `average_precision` of the
  entries of all images (of the images drawn, in a bootstrap).

Bit t of an entry of `.hits` is set where the detection is right at the t-th of the IoU thresholds
0.5, 0.55, ... 0.95; of `.ignored`, where it counts neither as right nor as wrong.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from maskclip_bench.backbones.dense_job import DenseFolder
from maskclip_bench.errors import DataError, JobError
from maskclip_bench.results.measurement import ratio_column_names


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


NUM_THRESHOLDS = 10
"""IoU 0.5 to 0.95, COCO's."""

RECALL_POINTS = np.linspace(0.0, 1.0, 101)
"""Where COCO reads precision."""

MATCHES = ("scores", "classes", "hits", "ignored")
"""Parts of a column of AP with one entry a detection."""


def average_precision(
    scores: NDArray[np.float64],
    classes: NDArray[np.integer[Any]],
    hits: NDArray[np.integer[Any]],
    ignored: NDArray[np.integer[Any]],
    objects: NDArray[np.integer[Any]],
) -> float:
    """COCO's AP (mean over IoU thresholds and classes) of detections that are already matched.

    Args:
        scores: [D].
        classes: [D].
        hits: [D], bits; see above.
        ignored: [D], bits.
        objects: [C], how many there are; classes without any are left out.

    Returns:
        A fraction, NaN without any object.
    """
    values = []
    for label in np.flatnonzero(objects):
        own = classes == label
        order = np.argsort(-scores[own], kind="stable")
        own_hits, own_ignored = hits[own][order], ignored[own][order]
        for threshold in range(NUM_THRESHOLDS):
            counted = (own_ignored >> threshold) & 1 == 0
            right = ((own_hits >> threshold) & 1)[counted].astype(np.float64)
            found = np.cumsum(right)
            precision = found / np.arange(1, len(right) + 1)
            precision = np.maximum.accumulate(precision[::-1])[::-1]
            at = np.searchsorted(found / objects[label], RECALL_POINTS, side="left")
            reached = at < len(precision)
            values.append(np.where(reached, np.append(precision, 0.0)[at], 0.0).mean())
    return float(np.mean(values)) if values else float("nan")


def match_columns(splits: Sequence[SplitResult], metric: str, kind: str) -> dict[str, list[Any]]:
    """Columns of an AP metric on all images of `splits`; empty where a job stored none.

    Args:
        splits: In the order of the table.
        metric: "box_ap" or "mask_ap".
        kind: "bbox" or "segm", as the job stored it.
    """
    columns: dict[str, list[Any]] = {f"{metric}.{part}": [] for part in (*MATCHES, "objects")}
    for part in splits:
        if f"{kind}_images" not in part.outcomes:
            return {}
        image_of = part.outcomes[f"{kind}_images"]
        order = np.argsort(image_of, kind="stable")
        ends = np.searchsorted(image_of[order], np.arange(len(part.outcomes["sample_id"]) + 1))
        for name in MATCHES:
            values = part.outcomes[f"{kind}_{name}"][order]
            columns[f"{metric}.{name}"] += [
                values[start:stop].tolist() for start, stop in itertools.pairwise(ends)
            ]
        columns[f"{metric}.objects"] += part.outcomes[f"{kind}_objects"].tolist()
    return columns
