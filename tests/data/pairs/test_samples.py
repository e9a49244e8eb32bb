from __future__ import annotations

import random
from collections import Counter

import pytest

from maskclip_bench.data.pair_config import SourceConfig
from maskclip_bench.data.pairs.pair_sources import BadSampleError
from maskclip_bench.data.pairs.samples import choose_caption


def test_choose_caption__rules() -> None:
    captions = [["a", "b"], ["c"]]
    rng = random.Random(0)

    def drawn(**rule: str) -> Counter[str]:
        config = SourceConfig.model_validate({"path": "x", **rule})
        return Counter(choose_caption(captions, config, rng) for _ in range(6000))

    assert drawn(captions="first") == {"a": 6000}
    assert drawn(captions="random")["c"] == pytest.approx(2000, rel=0.1)
    assert drawn(captions="random_of_fields")["c"] == pytest.approx(3000, rel=0.1)
    captions = [["", "b"], [" "]]
    assert drawn(captions="random_of_fields") == {"b": 6000}
    kept = drawn(captions="random_of_fields", empty_captions="keep")
    assert kept[""] == pytest.approx(1500, rel=0.1) and kept[" "] == pytest.approx(3000, rel=0.1)


def test_choose_caption__none_left() -> None:
    with pytest.raises(BadSampleError, match="empty caption"):
        choose_caption([[""], []], SourceConfig(path="x"), random.Random(0))
