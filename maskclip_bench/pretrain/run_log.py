"""What a run logs of a step, and where to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from maskclip_bench import distributed
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.progress import Snapshot
from maskclip_bench.training.logs import NoLog, RunLog


@contextlib.contextmanager
def open_log(output: Path, start_step: int, recipe: Recipe) -> Iterator[RunLog | NoLog]:
    """The run's log, on the main process."""
    if not distributed.is_main():
        yield NoLog()
        return
    with RunLog(
        output,
        start_step=start_step,
        tensorboard=recipe.log.tensorboard,
        wandb_project=recipe.log.wandb_project,
        name=recipe.name,
        recipe=recipe.model_dump(mode="json"),
    ) as log:
        yield log


def logged(snapshot: Snapshot) -> dict[str, float]:
    """What one line of the log holds."""
    return {
        "epoch": snapshot.epoch,
        **snapshot.terms,
        **snapshot.values,
        "images_per_second": snapshot.images_per_second,
        "data_wait_fraction": snapshot.data_wait_fraction,
        "memory_gib": snapshot.memory_bytes / 2**30,
        "num_nonfinite_steps": snapshot.num_nonfinite_steps,
    }
