"""The steps of a training, and the learning rate at each: pure functions, without a state."""

from __future__ import annotations

from dataclasses import dataclass

from maskclip_bench.errors import ConfigError
from maskclip_bench.tasks.finetuning.recipe import TrainRecipe
from maskclip_bench.training.schedule import learning_rate


@dataclass(frozen=True)
class TrainLength:
    """How many steps a run has, and how a step's images are divided.

    Attributes:
        steps_per_epoch: Whole batches of the training split; what is left of it is in no step.
        total_steps: Of the run.
        warmup_steps: Of it.
        micro_batches: Forward passes of a step, over all devices.
        micro_batch_size: Images of each.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    micro_batches: int
    micro_batch_size: int

    @classmethod
    def of(cls, recipe: TrainRecipe, *, num_images: int, world_size: int = 1) -> TrainLength:
        """Count.

        Args:
            recipe: What to do.
            num_images: Of the training split.
            world_size: Processes that train.

        Raises:
            ConfigError: The split is smaller than one batch, or the batch cannot be divided.
        """
        batch = recipe.global_batch_size
        if num_images < batch:
            raise ConfigError(
                f"The training split has {num_images} images, and one step takes {batch}. Set "
                f"options: {{global_batch_size: ...}} to at most {num_images}, or use preset small."
            )
        if batch % world_size:
            raise ConfigError(
                f"The batch of {batch} images cannot be divided among {world_size} processes. Use "
                "a number of GPUs that divides it, or set options: {global_batch_size: ...}."
            )
        limit = min(recipe.micro_batch_size, batch // world_size)
        size = max(d for d in range(1, limit + 1) if batch // world_size % d == 0)
        if recipe.mixes and size % 2:
            raise ConfigError(
                f"Mixup mixes images two by two, and a forward pass has {size}. Set options: "
                "{global_batch_size: ...} to a number that 2 x the number of GPUs divides."
            )
        steps_per_epoch = num_images // batch
        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=max(1, round(recipe.epochs * steps_per_epoch)),
            warmup_steps=round(recipe.warmup_epochs * steps_per_epoch),
            micro_batches=batch // size,
            micro_batch_size=size,
        )


def rate_at(step: int, recipe: TrainRecipe, length: TrainLength) -> float:
    """The rate of the head at a step counted from 0; layers below have their share of it."""
    if recipe.lr_steps == "epoch":
        step -= step % length.steps_per_epoch
    warmup = length.warmup_steps
    if step < warmup and recipe.warmup == "s/(W-1)":
        return recipe.lr * step / max(1, warmup - 1)
    if step < warmup and recipe.warmup == "(s+1)/W":
        return recipe.lr * (step + 1) / warmup
    return learning_rate(
        step,
        total_steps=length.total_steps,
        warmup_steps=warmup,
        lr=recipe.lr,
        min_lr=recipe.min_lr,
    )
