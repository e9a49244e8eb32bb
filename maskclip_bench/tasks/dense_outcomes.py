"""What dense protocols find on each image: read from the job's folder, kept with the record.

S images, C classes.
"""

from __future__ import annotations

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
