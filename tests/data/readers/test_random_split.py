from __future__ import annotations

import numpy as np
import pytest

from maskclip_bench.data.readers.random_split import split_per_class
from maskclip_bench.errors import ConfigError


def test_parts_are_disjoint_and_whole() -> None:
    labels = np.array([0, 1, 0, 1, 0, 2])
    train, test = (split_per_class(labels, 2, split) for split in ("train", "test"))
    assert sorted([*train, *test]) == list(range(6))
    assert np.bincount(labels[train]).tolist() == [2, 2, 1]


def test_other_split() -> None:
    with pytest.raises(ConfigError, match="makes the splits train and test, not 'val'"):
        split_per_class(np.array([0]), 1, "val")
