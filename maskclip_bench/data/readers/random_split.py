"""A fixed random split of a data set that has no official one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maskclip_bench.errors import ConfigError


def split_per_class(labels: NDArray[np.int64], per_class: int, split: str) -> NDArray[np.int64]:
    """Indices of `train` (`per_class` of each class, in a fixed random order) or of the rest.

    Raises:
        ConfigError: The split is neither `train` nor `test`.
    """
    if split not in ("train", "test"):
        raise ConfigError(
            f"train_per_class makes the splits train and test, not {split!r}. Correct `splits`."
        )
    train: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        train += np.random.default_rng(int(label)).permutation(members)[:per_class].tolist()
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[train] = True
    return np.flatnonzero(chosen if split == "train" else ~chosen)
