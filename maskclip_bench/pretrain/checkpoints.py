"""The checkpoints of a run on this rank: which one to go on from, and how the next is written.

One file, written by the main process; or, of a run whose weights are in shards, a folder to which
every process adds what it holds while training goes on (`training.shards`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from maskclip_bench import distributed
from maskclip_bench.data.pairs.identity import describe_difference
from maskclip_bench.errors import DataError
from maskclip_bench.pretrain.recipe import Recipe, recorded_recipe
from maskclip_bench.pretrain.run_folder import RunFolder
from maskclip_bench.training.checkpoint import Checkpoint
from maskclip_bench.training.parallel import ParallelStrategy
from maskclip_bench.training.shards import ShardWriter


class RunCheckpoints:
    """Finds, restores and writes the checkpoints of a run; every rank has one.

    Args:
        recipe: How often, how many, in which form.
        folder: Of the run.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self._recipe = recipe
        self._folder = folder
        self._store = folder.store(keep=recipe.checkpoint.keep)
        self._writer = ShardWriter() if recipe.checkpoints_in_shards else None

    def paths(self) -> list[Path]:
        """The checkpoints that are complete, oldest first."""
        return self._store.paths()

    def newest(self, data: dict[str, Any]) -> Checkpoint | None:
        """The newest intact checkpoint, chosen by the main process; the others read the same.

        Args:
            data: Identity of what the run is trained on.

        Raises:
            ConfigError: It is of another recipe.
            DataError: It is of other data.
        """
        found: list[Checkpoint] = []

        def choose() -> str:
            checkpoint = self._store.latest(set_aside=True, whole=False)
            if checkpoint is None:
                return ""
            self._check_origin(checkpoint, data)
            found.append(checkpoint)
            return str(checkpoint.step)

        step = distributed.on_main(choose)
        if not step:
            return None
        return found[0] if found else self._store.load(int(step), whole=False)

    def _check_origin(self, checkpoint: Checkpoint, data: dict[str, Any]) -> None:
        """Make sure that a checkpoint is of this recipe and these data."""
        where = f"the recipe in the checkpoint of step {checkpoint.step}"
        made_by = recorded_recipe(checkpoint.recipe, where=where)
        self._folder.check_same(made_by, self._recipe)
        if not checkpoint.data:  # written before checkpoints knew their data
            return
        difference = describe_difference(checkpoint.data, data)
        if difference:
            raise DataError(
                f"{self._folder.root} was trained on other data up to step {checkpoint.step} "
                f"({difference}). Bring back the data as they were, or start again in another "
                "folder with --output."
            )

    def restore(
        self, checkpoint: Checkpoint, strategy: ParallelStrategy, optimizer: torch.optim.Optimizer
    ) -> None:
        """Load the tensors of what `newest` gave. Every rank calls it.

        Raises:
            CheckpointError: It is of another model.
        """
        if checkpoint.shards is not None:
            groups = checkpoint.optimizer["param_groups"]
            strategy.restore_shards(optimizer, checkpoint.shards, groups)
        else:
            strategy.restore(optimizer, checkpoint.method, checkpoint.optimizer)

    def save(
        self,
        strategy: ParallelStrategy,
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        counters: dict[str, int],
        data: dict[str, Any],
    ) -> None:
        """Write a checkpoint, in shards in the background. Every rank calls it.

        Raises:
            StorageError: The disk refused; of a checkpoint in shards, also the one before it.
        """
        checkpoint = Checkpoint(
            step=step,
            method={},
            optimizer={},
            counters=counters,
            recipe=self._recipe.model_dump(mode="json"),
            world_size=distributed.world_size(),
            data=data,
        )
        if self._writer is not None:
            tensors, groups = strategy.shards(optimizer)
            self._store.save_in_shards(self._writer, checkpoint, tensors, groups)
            return
        method, optimizer_state = strategy.state(optimizer)
        if distributed.is_main():
            whole = dataclasses.replace(checkpoint, method=method, optimizer=optimizer_state)
            self._store.save(whole)

    def wait(self) -> None:
        """Wait until what was saved last is complete. Every rank calls it.

        Raises:
            StorageError: The disk refused.
        """
        if self._writer is not None:
            self._writer.wait()

    def close(self) -> None:
        """Wait for it on this rank, whatever comes of it."""
        if self._writer is not None:
            self._writer.close()
