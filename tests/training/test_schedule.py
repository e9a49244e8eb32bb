from __future__ import annotations

import itertools
import math

import pytest

from maskclip_bench.training.schedule import learning_rate


def rates(total: int, warmup: int, **kwargs: float) -> list[float]:
    return [
        learning_rate(step, total_steps=total, warmup_steps=warmup, lr=1.0, **kwargs)
        for step in range(total)
    ]


def test_learning_rate__warms_up_then_falls() -> None:
    found = rates(10, 4, start_lr=0.2, min_lr=0.1)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < earlier for earlier, later in itertools.pairwise(found[4:]))
    assert found[7] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))


def test_learning_rate__without_warmup_starts_at_the_top_and_ends_at_the_bottom() -> None:
    assert rates(4, 0)[0] == 1.0
    end = learning_rate(9, total_steps=4, warmup_steps=0, lr=1.0, min_lr=0.25)
    assert end == pytest.approx(0.25)


def test_learning_rate__a_run_shorter_than_its_warmup() -> None:
    assert rates(3, 10) == pytest.approx([0.0, 0.1, 0.2])
