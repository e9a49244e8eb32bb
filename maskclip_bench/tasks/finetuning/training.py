"""Train a classifier by a recipe; resumable at any step, on one or several devices.

Every draw of a step follows from (seed, step, micro-batch), every image from (seed, epoch, image),
every rate from the step. So a run that is killed and started again computes what it would have
computed (bit for bit on a CPU), and the number of devices only changes the order of sums.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim.lars import Lars
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from maskclip_bench import distributed, storage
from maskclip_bench.backbones.loading import Backbone
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import CheckpointError, TrainingError
from maskclip_bench.jobs import JobCancelled
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.runtime import default_num_threads, derive_seed
from maskclip_bench.tasks.finetuning.augmentation import (
    MicroBatch,
    MicroBatchOrder,
    global_draws,
    micro_batches,
    train_transform,
)
from maskclip_bench.tasks.finetuning.classifier import (
    Classifier,
    State,
    build_classifier,
    load_trained_state,
    set_training,
    trained_state,
)
from maskclip_bench.tasks.finetuning.folder import (
    TrainFolder,
    read_report,
    read_tensors,
    write_tensors,
)
from maskclip_bench.tasks.finetuning.layer_decay import Layers, decayed_groups, layer_rates
from maskclip_bench.tasks.finetuning.recipe import TrainRecipe
from maskclip_bench.tasks.finetuning.schedule import TrainLength, rate_at
from maskclip_bench.training.checkpoint import Checkpoint, CheckpointStore, restore_optimizer
from maskclip_bench.training.interruption import Interruption, RunStopped
from maskclip_bench.training.optim import set_learning_rate
from maskclip_bench.training.parallel import average_gradients
from maskclip_bench.training.readback import Readback, agreed

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY_STEPS = 500
"""At least; a longer epoch ends with one."""
KEPT_CHECKPOINTS = 2
MAX_WORKERS = 8
LARS_TRUST = 0.001

Evaluate = Callable[[Classifier, int], None]
"""(the classifier in evaluation mode, steps done)."""


@dataclass(frozen=True)
class TrainRun:
    """A training.

    Attributes:
        backbone: The row; it stays as it is.
        recipe: What to do.
        train: The training split.
        folder: Where it works; nobody else does at the same time.
        num_classes: Of the classifier.
        seed: Of all that is drawn.
        zero_shot: First weights [C, P] of the head, where the recipe wants them.
        evaluate: Called every `recipe.evaluate_every_epochs`, on every rank.
        progress: Told of the steps.
        stop: Asked after every step whether to stop, after a checkpoint.
        stop_signals: Likewise, on a signal.
    """

    backbone: Backbone
    recipe: TrainRecipe
    train: Dataset
    folder: TrainFolder
    num_classes: int
    seed: int = 0
    zero_shot: Tensor | None = None
    evaluate: Evaluate | None = None
    progress: Progress = no_progress
    stop: Callable[[], bool] = lambda: False
    stop_signals: Sequence[signal.Signals] = ()

    def classifier(self) -> Classifier:
        """The classifier before its first step.

        Raises:
            ConfigError: The model has not what the recipe needs.
        """
        return build_classifier(
            self.backbone,
            self.recipe,
            num_classes=self.num_classes,
            seed=self.seed,
            zero_shot=self.zero_shot,
        )


def trained_classifier(run: TrainRun) -> tuple[Classifier, State, dict[str, Any]]:
    """Train, or read what was trained before -> classifier, its state before, the report.

    The classifier is in evaluation mode; with `ema_decay` it has the averaged weights.

    Raises:
        RunStopped: A signal stopped it; the same call goes on from there.
        JobCancelled: `run.stop` did.
        TrainingError: The loss is not finite.
        ConfigError: The recipe does not fit the data or the model.
        DataError: An image cannot be read.
        CheckpointError: No checkpoint of it can be read.
        StorageError: The disk refused.
    """
    classifier = run.classifier()
    first = {name: value.clone() for name, value in trained_state(classifier).items()}
    report = read_report(run.folder)
    found = read_tensors(run.folder.trained, str(report.get("sha256", "")))
    if found is None:
        trainer = _Trainer(run, classifier)
        trainer.go()
        report = _finish(run, trainer)
        distributed.barrier()
        found = trained_state(trainer.tested)
    load_trained_state(classifier, found)
    return classifier.eval(), first, report


def _finish(run: TrainRun, trainer: _Trainer) -> dict[str, Any]:
    """Write what was trained, on the main process; the checkpoints are no longer needed."""
    report = trainer.report()
    if distributed.is_main():
        report["sha256"] = write_tensors(run.folder.trained, trained_state(trainer.tested))
        storage.write_json(run.folder.report, report)
        shutil.rmtree(run.folder.checkpoints, ignore_errors=True)
    return report


class _Trainer:
    """The state of a training on this rank."""

    def __init__(self, run: TrainRun, classifier: Classifier) -> None:
        recipe = run.recipe
        self._run = run
        self._device = run.backbone.device
        self._length = TrainLength.of(
            recipe, num_images=len(run.train), world_size=distributed.world_size()
        )
        self._classifier = classifier
        self._trained = [p for p in classifier.parameters() if p.requires_grad]
        layers = Layers(classifier.encoder.model)
        self._groups = decayed_groups(
            self._trained,
            layers,
            layer_decay=recipe.layer_decay,
            weight_decay=recipe.weight_decay,
            decay_everything=recipe.decayed == "everything",
        )
        self._layers_known = layers.known
        self._optimizer = build_optimizer(recipe, self._groups)
        self._ema = None if recipe.ema_decay is None else ModelEmaV3(classifier, recipe.ema_decay)
        self._mixup = _mixup(recipe, run.num_classes)
        self._loss = _loss(recipe)
        self._store = CheckpointStore(run.folder.checkpoints, keep=KEPT_CHECKPOINTS)
        self._step = 0
        self._last_loss = float("nan")
        self._restore()
        self._order = MicroBatchOrder(
            self._length,
            num_images=len(run.train),
            seed=run.seed,
            start_step=self._step,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    @property
    def tested(self) -> nn.Module:
        """Whose weights are tested: the average's where there is one."""
        return self._classifier if self._ema is None else self._ema.module

    def report(self) -> dict[str, Any]:
        """What was done, for records."""
        recipe, length = self._run.recipe, self._length
        return {
            "steps": length.total_steps,
            "steps_per_epoch": length.steps_per_epoch,
            "micro_batch_size": length.micro_batch_size,
            "processes": distributed.world_size(),
            "trained_parameters": sum(parameter.numel() for parameter in self._trained),
            "layer_rates": layer_rates(self._groups) if self._layers_known else "one layer",
            "last_loss": self._last_loss,
            "weights_tested": "last" if recipe.ema_decay is None else "moving average",
        }

    def go(self) -> None:
        """Train to the end."""
        run, length = self._run, self._length
        every = max(CHECKPOINT_EVERY_STEPS, length.steps_per_epoch)
        evaluate_every = None
        if run.evaluate is not None and run.recipe.evaluate_every_epochs is not None:
            evaluate_every = run.recipe.evaluate_every_epochs * length.steps_per_epoch
        set_training(self._classifier, run.recipe)
        with (
            contextlib.closing(self._batches()) as batches,
            Interruption(run.stop_signals) as interruption,
        ):
            while self._step < length.total_steps:
                stop = self._do_step(batches, stop=interruption.requested or run.stop())
                self._step += 1
                run.progress("training", self._step, length.total_steps)
                if evaluate_every and self._step % evaluate_every == 0:
                    assert run.evaluate is not None
                    run.evaluate(self._classifier.eval(), self._step)
                    set_training(self._classifier, run.recipe)
                if stop or self._step % every == 0:
                    self._save()
                if stop:
                    raise RunStopped if interruption.requested else JobCancelled

    def _batches(self) -> Generator[MicroBatch, None, None]:
        run = self._run
        on_cuda = self._device.type == "cuda"
        cores = default_num_threads() // distributed.world_size()
        yield from micro_batches(
            run.train,
            train_transform(run.recipe.augmentation, run.backbone.transform),
            self._order,
            num_workers=min(MAX_WORKERS, max(1, cores)) if on_cuda else 0,
            pin_memory=on_cuda,
        )

    def _do_step(self, batches: Iterator[MicroBatch], *, stop: bool) -> bool:
        """One step -> whether any rank wants to stop.

        Raises:
            TrainingError: The loss or the gradient is not finite.
        """
        set_learning_rate(self._optimizer, rate_at(self._step, self._run.recipe, self._length))
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        share = distributed.world_size() / self._length.micro_batches
        for micro in self._order.own:
            loss = self._micro_loss(*next(batches), micro=micro) * share
            loss.backward()
            total += loss.detach()
        if distributed.is_distributed():
            average_gradients(self._trained)
        norm = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in self._trained if parameter.grad is not None]
        )
        terms, not_finite, asked = agreed({"loss": total, "gradient_norm": norm}, stop=stop)
        found = Readback({**terms, "not finite": not_finite, "stop": asked}).wait()
        if found["not finite"]:
            raise TrainingError(
                f"The loss ({found['loss']:g}) or its gradient is not finite at step "
                f"{self._step} of {self._length.total_steps}. Lower options: {{lr: ...}}, or set "
                "precision: fp32 or clip_grad_norm: 1."
            )
        limit = self._run.recipe.clip_grad_norm
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self._trained, limit, norm)
        self._optimizer.step()
        if self._ema is not None:
            self._ema.update(self._classifier)
        self._last_loss = found["loss"]
        return bool(found["stop"])

    def _micro_loss(self, images: Tensor, labels: Tensor, *, micro: int) -> Tensor:
        """The mean loss of a micro-batch, whose draws follow from step and number."""
        devices = [] if self._device.type != "cuda" else [self._device.index or 0]
        images = images.to(self._device, non_blocking=True)
        targets: Tensor = labels.to(self._device, non_blocking=True)
        seed = derive_seed(self._run.seed, "step", self._step, micro)
        with global_draws(seed, devices=devices):
            if self._mixup is not None:
                images, targets = self._mixup(images, targets)
            bf16 = self._run.recipe.precision == "bf16"
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bf16):
                logits = self._classifier(images)
            return self._loss(logits.float(), targets)

    def _save(self) -> None:
        if not distributed.is_main():
            return
        state: dict[str, Any] = {
            "classifier": trained_state(self._classifier),
            "last_loss": self._last_loss,
        }
        if self._ema is not None:
            state["average"] = trained_state(self._ema.module)
        self._store.save(
            Checkpoint(
                step=self._step,
                method=state,
                optimizer=self._optimizer.state_dict(),
                counters={},
                recipe=self._run.recipe.model_dump(mode="json"),
                world_size=distributed.world_size(),
                data={"train": self._run.train.fingerprint},
            )
        )

    def _restore(self) -> None:
        """Go on from the newest readable checkpoint, which all ranks read.

        Raises:
            CheckpointError: It is of another training.
        """
        step = distributed.on_main(self._newest)
        if not step:
            return
        checkpoint = self._store.load(int(step))
        restore_optimizer(self._optimizer, checkpoint.optimizer, where="the checkpoint")
        try:
            load_trained_state(self._classifier, checkpoint.method["classifier"])
            if self._ema is not None:
                load_trained_state(self._ema.module, checkpoint.method["average"])
            self._last_loss = float(checkpoint.method["last_loss"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"The checkpoint of step {step} in {self._run.folder.path} is of another training "
                f"({error}). Delete that folder and run again."
            ) from error
        self._step = checkpoint.step
        logger.info("Going on from step %d of %d.", self._step, self._length.total_steps)

    def _newest(self) -> str:
        checkpoint = self._store.latest(set_aside=True)
        return "" if checkpoint is None else str(checkpoint.step)


def build_optimizer(recipe: TrainRecipe, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The recipe's optimizer of parameter groups (`layer_decay.decayed_groups`)."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(list(groups), lr=recipe.lr, betas=recipe.betas)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(list(groups), lr=recipe.lr, momentum=recipe.momentum)
    split = [
        {**group, "params": chosen, "always_adapt": adapts}
        for group in groups
        for adapts in (True, False)
        if (chosen := [p for p in group["params"] if (p.ndim > 1) == adapts])
    ]
    return Lars(split, lr=recipe.lr, momentum=recipe.momentum, trust_coeff=LARS_TRUST)


def _mixup(recipe: TrainRecipe, num_classes: int) -> Mixup | None:
    if not recipe.mixes:
        return None
    return Mixup(
        mixup_alpha=recipe.augmentation.mixup,
        cutmix_alpha=recipe.augmentation.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )


def _loss(recipe: TrainRecipe) -> nn.Module:
    if recipe.mixes:
        return SoftTargetCrossEntropy()  # the targets are smoothed when they are mixed
    return nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
