"""Schedules: pure functions of the step, so that a resumed run needs to restore none of them."""

from __future__ import annotations

import math


def learning_rate(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    lr: float,
    start_lr: float = 0.0,
    min_lr: float = 0.0,
) -> float:
    """Linear warm-up, then half a cosine, as in SLIP's and MAE's training.

    Args:
        step: Counted from 0.
        total_steps: Steps of the whole run; the cosine reaches `min_lr` at this (unseen) step.
        warmup_steps: The first steps, in which the rate rises from `start_lr` to `lr`.
        lr: The highest rate, reached at step `warmup_steps`.
        start_lr: The rate at step 0, if there is a warm-up.
        min_lr: The rate at the end.

    Example:
        >>> [learning_rate(s, total_steps=4, warmup_steps=2, lr=1.0) for s in range(4)]
        [0.0, 0.5, 1.0, 0.5]
    """
    if step < warmup_steps:
        return start_lr + (lr - start_lr) * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + math.cos(math.pi * progress))
