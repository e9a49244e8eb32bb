"""How long a run is, in steps, and when something happens in it."""

from __future__ import annotations

from dataclasses import dataclass

from maskclip_bench.errors import ConfigError
from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.recipe import Recipe


@dataclass(frozen=True)
class RunLength:
    """A recipe's lengths in optimizer steps.

    Attributes:
        steps_per_epoch: Of one pass over the data.
        total_steps: Of the run.
        warmup_steps: Of the learning rate's warm-up.
        checkpoint_every: Between two checkpoints.
        evaluate_every: Between two evaluations; None if there are none.
        held_out_every: Between two measurements of held-out pairs; None if there are none.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    checkpoint_every: int
    evaluate_every: int | None
    held_out_every: int | None = None

    @classmethod
    def of(cls, recipe: Recipe, *, batches_per_epoch: int) -> RunLength:
        """Lengths of a run.

        Args:
            recipe: What is run.
            batches_per_epoch: Micro-batches of an epoch on one rank.

        Raises:
            ConfigError: An epoch has less than one step.
        """
        held_out = recipe.evaluation.held_out
        steps_per_epoch = batches_per_epoch // recipe.accumulation_steps
        if steps_per_epoch == 0:
            raise ConfigError(
                f"An epoch has {batches_per_epoch} micro-batches, fewer than "
                f"accumulation_steps={recipe.accumulation_steps}. Lower global_batch_size."
            )
        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=_total_steps(recipe, steps_per_epoch),
            warmup_steps=_warmup_steps(recipe, steps_per_epoch),
            checkpoint_every=recipe.checkpoint.every_steps or steps_per_epoch,
            evaluate_every=_evaluate_every(recipe, steps_per_epoch),
            held_out_every=(held_out.every_steps or steps_per_epoch) if held_out else None,
        )


def batch_size_per_gpu(recipe: Recipe, num_processes: int) -> int:
    """Samples of a micro-batch on one device.

    Raises:
        ConfigError: The global batch cannot be divided, or leaves one sample for each process where
            views are normalized over its batch.
    """
    parts = num_processes * recipe.accumulation_steps
    if recipe.global_batch_size % parts:
        raise ConfigError(
            f"global_batch_size={recipe.global_batch_size} cannot be divided over {num_processes} "
            f"processes x {recipe.accumulation_steps} accumulation steps. Choose a multiple of "
            f"{parts}."
        )
    views = METHODS[recipe.method.name].num_ssl_views
    if views and recipe.global_batch_size == num_processes:
        raise ConfigError(
            f"global_batch_size={recipe.global_batch_size} leaves one sample for each of "
            f"{num_processes} processes, and the head of {recipe.method.name} normalizes over its "
            f"batch. Choose at least {2 * num_processes}."
        )
    return recipe.global_batch_size // parts


def _total_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    if recipe.num_pairs is not None:
        return recipe.num_pairs // recipe.global_batch_size
    assert recipe.epochs is not None
    return max(1, round(recipe.epochs * steps_per_epoch))


def _warmup_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    optimizer = recipe.optimizer
    if optimizer.warmup_steps is not None:
        return optimizer.warmup_steps
    return round((optimizer.warmup_epochs or 0.0) * steps_per_epoch)


def _evaluate_every(recipe: Recipe, steps_per_epoch: int) -> int | None:
    every = recipe.evaluation.every_epochs
    return max(1, round(every * steps_per_epoch)) if every else None
