"""The trainer: one recipe, from first step to model folder, resumable at any step.

Every random draw of a step follows from (seed, step, rank): weights from the seed, the data and
its crops from (seed, epoch, sample), masks and augmentation from a generator seeded anew for each
step. So a run that is killed and started again computes what it would have computed (bit for bit
on a CPU), and a checkpoint needs to hold no generator's state.

A run's folder holds recipe.yaml, log.jsonl, progress.json, tensorboard/, checkpoints/, and at the
end model/ (and teacher/): folders that open_clip loads.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from open_clip.model import CustomTextCLIP
from torch import Tensor

from maskclip_bench import distributed, storage
from maskclip_bench.data.augment import DeviceAugment
from maskclip_bench.data.batch import Batch, RawBatch
from maskclip_bench.data.pairs.loader import PairLoader
from maskclip_bench.data.tokenizer import PAD_TOKEN_ID, load_tokenizer
from maskclip_bench.errors import ConfigError, StorageError, TrainingError
from maskclip_bench.pretrain.accumulation import accumulated_backward
from maskclip_bench.pretrain.export import (
    Weights,
    finished_fingerprint,
    has_teacher,
    model_of,
    write_model_folder,
)
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.recipe import Recipe, load_recipe
from maskclip_bench.progress import Report, Snapshot, SnapshotCallback
from maskclip_bench.runtime import derive_seed, provenance
from maskclip_bench.training import nonfinite
from maskclip_bench.training.checkpoint import Checkpoint, CheckpointStore
from maskclip_bench.training.interruption import STOP_SIGNALS, Interruption, RunStopped
from maskclip_bench.training.logs import RunLog
from maskclip_bench.training.meter import Meter
from maskclip_bench.training.optim import build_optimizer, set_learning_rate
from maskclip_bench.training.parallel import Replicas, Shards, transformer_blocks
from maskclip_bench.training.readback import Readback
from maskclip_bench.training.schedule import learning_rate

logger = logging.getLogger(__name__)

Evaluator = Callable[[CustomTextCLIP, int], dict[str, float]]
"""(the student in evaluation mode, steps done) -> numbers to log."""


MODEL_FOLDER = "model"
TEACHER_FOLDER = "teacher"
RECIPE_FILE = "recipe.yaml"
CHECKPOINT_FOLDER = "checkpoints"


def train(
    recipe: Recipe,
    *,
    output: Path,
    data_root: Path,
    workspace: Path | None = None,
    device: torch.device | str = "cpu",
    evaluators: Sequence[Evaluator] = (),
    progress: SnapshotCallback | None = None,
    stop_signals: Sequence[signal.Signals] = STOP_SIGNALS,
) -> Path:
    """Pretrain by a recipe, or go on where an earlier call stopped; returns the model's folder.

    Args:
        recipe: What to do.
        output: The run's folder. If it holds a finished run of this recipe, nothing is done.
        data_root: What the recipe's data paths are relative to.
        workspace: What its `start_from` is relative to; by default the working directory.
        device: Where to train. Under `torchrun` the process group must exist.
        evaluators: Run every `recipe.evaluation.every_epochs`, on the main process.
        progress: Told how far the run is, a few times a second.
        stop_signals: On each of these, finish the step, write a checkpoint, and stop.

    Raises:
        RunStopped: A signal stopped the run (a `KeyboardInterrupt`); the same call goes on from
            there.
        ConfigError: `output` holds a run of another recipe, or the batch cannot be divided.
        DataError: The data are missing, or too many samples are broken.
        CheckpointError: No checkpoint of the run can be read.
        TrainingError: Losses stopped being finite.
        StorageError: The disk refused.
    """
    device = torch.device(device)
    cuda_devices = [device] if device.type == "cuda" else []
    with (
        _one_process_at_a_time(output),
        torch.random.fork_rng(devices=cuda_devices),
    ):
        if finished_fingerprint(output / MODEL_FOLDER) != recipe.computation_fingerprint():
            run = _Run(
                recipe, output=output, data_root=data_root, workspace=workspace, device=device
            )
            run.go(evaluators=evaluators, progress=progress, stop_signals=stop_signals)
    return output / MODEL_FOLDER


class _Run:
    """One run of a recipe on this rank."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        output: Path,
        data_root: Path,
        workspace: Path | None,
        device: torch.device,
    ) -> None:
        self._recipe = recipe
        self._output = output
        self._device = device
        self._rank = distributed.rank()
        if distributed.is_main():
            _claim_folder(output, recipe)
        distributed.barrier()
        batch_size_per_gpu = _batch_size_per_gpu(recipe, distributed.world_size())

        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        tokenizer = load_tokenizer(recipe.tokenizer)
        if tokenizer.vocab_size != recipe.model.text.vocab_size:
            raise ConfigError(
                f"The {recipe.tokenizer.kind} tokenizer has {tokenizer.vocab_size} tokens, and "
                f"model.text.vocab_size is {recipe.model.text.vocab_size}. Make them equal."
            )
        fields = recipe.method_fields(workspace=workspace)
        self._method: Method = build_method(recipe.method.name, fields, recipe.model, tokenizer)
        self._loader = PairLoader(
            recipe.data,
            data_root=data_root,
            tokenizer=tokenizer,
            image_size=recipe.model.image_size,
            num_ssl_views=self._method.num_ssl_views,
            batch_size_per_gpu=batch_size_per_gpu,
            seed=recipe.seed,
            rank=self._rank,
            world_size=distributed.world_size(),
        )
        self._augment = DeviceAugment(recipe.data.augment)
        self._steps_per_epoch = self._loader.steps_per_epoch // recipe.accumulation_steps
        if self._steps_per_epoch == 0:
            raise ConfigError(
                f"An epoch has {self._loader.steps_per_epoch} micro-batches, fewer than "
                f"accumulation_steps={recipe.accumulation_steps}. Lower global_batch_size."
            )
        self._total_steps = _total_steps(recipe, self._steps_per_epoch)
        self._warmup_steps = _warmup_steps(recipe, self._steps_per_epoch)
        self._prepare_method()
        self._store = CheckpointStore(output / CHECKPOINT_FOLDER, keep=recipe.checkpoint.keep)
        self._step = 0
        self._num_nonfinite = 0
        self._nonfinite_in_row = 0
        self._bad_gradients: list[str] = []  # parameters, at the last step that was skipped
        self._bad_before = 0  # bad samples of this epoch before the run was interrupted
        self._resume()

    def _prepare_method(self) -> None:
        """Put the method on the device and, over several, in replicas or shards."""
        recipe, method = self._recipe, self._method
        method.to(self._device).train()
        if recipe.grad_checkpointing:
            method.model.set_grad_checkpointing(True)
        no_weight_decay = method.parameters_without_weight_decay()
        if recipe.compile:
            for block in transformer_blocks(method):
                block.compile()
        self._parallel: Replicas | Shards
        if recipe.parallel == "fsdp":
            self._parallel = Shards(method, device=self._device, bf16=recipe.precision == "bf16")
        else:
            self._parallel = Replicas(
                method, device=self._device, accumulates=recipe.accumulation_steps > 1
            )
        optimizer = recipe.optimizer
        self._optimizer = build_optimizer(
            method,
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            betas=optimizer.betas,
            eps=optimizer.eps,
            no_weight_decay=no_weight_decay,
        )
        self._buffers = list(method.buffers())
        self._buffers_before = [buffer.clone() for buffer in self._buffers]

    def _resume(self) -> None:
        """Go on from the newest readable checkpoint, if there is one."""
        checkpoint = self._store.latest()
        if checkpoint is None:
            return
        self._parallel.restore(self._optimizer, checkpoint.method, checkpoint.optimizer)
        self._step = checkpoint.step
        self._num_nonfinite = checkpoint.counters.get("num_nonfinite", 0)
        self._bad_before = checkpoint.counters.get("bad_samples", 0)
        logger.info("Going on from step %d of %d.", self._step, self._total_steps)
        if checkpoint.world_size != distributed.world_size():
            logger.warning(
                "This run was on %d processes and goes on on %d: masks are drawn differently.",
                checkpoint.world_size,
                distributed.world_size(),
            )

    # The loop.

    def go(
        self,
        *,
        evaluators: Sequence[Evaluator],
        progress: SnapshotCallback | None,
        stop_signals: Sequence[signal.Signals],
    ) -> None:
        """Train to the end, and write the model's folder."""
        recipe = self._recipe
        log = _open_log(self._output, self._step, recipe)
        meter = Meter(self._step, self._total_steps, recipe.global_batch_size)
        report = Report(
            self._output if distributed.is_main() else None,
            progress if distributed.is_main() else None,
        )
        evaluate_every = _evaluate_every(recipe, self._steps_per_epoch) if evaluators else None
        with (
            log,
            contextlib.closing(self._batches()) as batches,
            Interruption(stop_signals) as interruption,
        ):
            while self._step < self._total_steps:
                with meter.waiting():
                    raws = next(batches)
                readback, lr = self._optimizer_step(raws, stop=interruption.requested)
                self._step += 1
                meter.step()
                last = self._step == self._total_steps
                state = self._state(readback, meter, lr)
                epoch_ends = self._step % self._steps_per_epoch == 0
                if self._step % recipe.log.every_steps == 0 or epoch_ends or last:
                    samples = self._unusable_samples() if epoch_ends or last else {}
                    log.write(self._step, {**_numbers(state), **samples})
                    meter.restart()
                if epoch_ends:
                    self._bad_before = 0
                report(state, force=last)
                if self._nonfinite_in_row >= recipe.max_nonfinite_steps:
                    raise self._nonfinite_error(readback, raws)
                if evaluate_every and (self._step % evaluate_every == 0 or last):
                    log.write(self._step, self._evaluate(evaluators))
                    meter.restart()
                if last or readback.stop or self._step % self._checkpoint_every == 0:
                    self._save()
                if readback.stop and not last:
                    raise RunStopped
            self._export()

    @property
    def _checkpoint_every(self) -> int:
        return self._recipe.checkpoint.every_steps or self._steps_per_epoch

    def _unusable_samples(self) -> dict[str, float]:
        """How many samples were replaced in this epoch, and left out of all, over all ranks."""
        return {"bad_samples": self._num_bad_samples(), "lost_samples": self._loader.num_lost}

    def _num_bad_samples(self) -> int:
        """Samples replaced so far in the epoch under way, over all ranks."""
        here = torch.tensor(self._loader.num_replaced, device=self._device)
        return self._bad_before + int(distributed.all_reduce_sum(here))

    def _batches(self) -> Generator[list[RawBatch], None, None]:
        """The micro-batches of each step, from the current step on, for ever."""
        accumulation = self._recipe.accumulation_steps
        epoch, done = divmod(self._step, self._steps_per_epoch)
        while True:
            pending: list[RawBatch] = []
            raws = self._loader.epoch(epoch, start_step=done * accumulation)
            with contextlib.closing(raws):
                for raw in raws:
                    pending.append(raw)
                    if len(pending) == accumulation:
                        yield pending
                        pending = []
            epoch, done = epoch + 1, 0

    def _optimizer_step(self, raws: list[RawBatch], *, stop: bool) -> tuple[Readback, float]:
        """One update of the weights, or none if a loss or the gradient is not finite."""
        _copy(self._buffers, to=self._buffers_before)
        readback = self._forward_backward(raws, stop=stop)
        optimizer = self._recipe.optimizer
        lr = learning_rate(
            self._step,
            total_steps=self._total_steps,
            warmup_steps=self._warmup_steps,
            lr=optimizer.lr,
            start_lr=optimizer.start_lr,
            min_lr=min(optimizer.min_lr, optimizer.lr),
        )
        set_learning_rate(self._optimizer, lr)
        finite = readback.wait() and self._clip_gradients()
        if finite:
            self._optimizer.step()
            readback.values = self._method.after_step(
                step=self._step + 1, total_steps=self._total_steps
            )
            self._nonfinite_in_row = 0
        else:
            _copy(self._buffers_before, to=self._buffers)
            self._num_nonfinite += 1
            self._nonfinite_in_row += 1
            self._bad_gradients = nonfinite.not_finite(
                (name, parameter.grad)
                for name, parameter in self._method.named_parameters()
                if parameter.grad is not None
            )
            if self._nonfinite_in_row == 1:
                logger.warning("Step %d skipped: %s not finite.", self._step, readback.not_finite())
        self._optimizer.zero_grad(set_to_none=True)
        return readback, lr

    def _forward_backward(self, raws: list[RawBatch], *, stop: bool) -> Readback:
        batches = [
            self._prepare(raw, number, self._step) for number, raw in enumerate(_same_length(raws))
        ]
        if len(batches) == 1:
            with self._autocast():
                terms = self._parallel.forward(batches[0])
            readback = Readback(terms, stop=stop)  # before backward, so that nothing waits for it
            terms["loss"].backward()
        else:
            states = [batch.generator.get_state() for batch in batches]

            def reseed(number: int) -> None:
                batches[number].generator.set_state(states[number])
                self._seed_global(number, self._step)

            terms = accumulated_backward(
                self._method, batches, reseed=reseed, autocast=self._autocast
            )
            readback = Readback(terms, stop=stop)
        self._parallel.finish_gradients()
        return readback

    def _prepare(self, raw: RawBatch, number: int, step: int) -> Batch:
        """Augment a micro-batch on the device, and seed all that a step draws."""
        seed = derive_seed(self._recipe.seed, "step", step, self._rank, number)
        generator = torch.Generator().manual_seed(seed)
        batch = self._augment(raw, device=self._device, generator=generator)
        self._seed_global(number, step)
        return batch

    def _seed_global(self, number: int, step: int) -> None:
        """Seed torch's own generators: dropout and stochastic depth draw from them."""
        torch.manual_seed(derive_seed(self._recipe.seed, "dropout", step, self._rank, number))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._recipe.precision == "bf16"
        )

    def _clip_gradients(self) -> bool:
        """Clip if the recipe says so; False if the gradient is not finite, on any rank."""
        parameters = list(self._method.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        if hasattr(norm, "full_tensor"):  # of shards: each rank has its own part
            norm = norm.full_tensor()
        if not bool(norm.isfinite()):
            return False
        largest = self._recipe.optimizer.clip_grad_norm
        if largest is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return True

    # What is told and written.

    def _state(self, readback: Readback, meter: Meter, lr: float) -> Snapshot:
        return Snapshot(
            step=self._step,
            total_steps=self._total_steps,
            epoch=self._step / self._steps_per_epoch,
            images_per_second=meter.images_per_second,
            eta_seconds=meter.eta_seconds(self._step),
            data_wait_fraction=meter.wait_fraction,
            memory_bytes=_peak_memory(self._device),
            terms=readback.terms,
            values={"lr": lr, **readback.values},
            num_nonfinite_steps=self._num_nonfinite,
        )

    def _save(self) -> None:
        """Write a checkpoint, unless the weights are in doubt."""
        if self._nonfinite_in_row:
            logger.warning("No checkpoint at step %d, which was skipped.", self._step)
            return
        if not _all_finite(self._method):
            logger.warning("No checkpoint at step %d: weights are not finite.", self._step)
            return
        checkpoint = self._checkpoint()
        if distributed.is_main():
            self._store.save(checkpoint)

    def _checkpoint(self) -> Checkpoint:
        """The state now; whole on the main process."""
        method_state, optimizer_state = self._parallel.state(self._optimizer)
        in_epoch = self._step % self._steps_per_epoch > 0
        bad_samples = self._num_bad_samples() if in_epoch else 0
        return Checkpoint(
            step=self._step,
            method=method_state,
            optimizer=optimizer_state,
            counters={"num_nonfinite": self._num_nonfinite, "bad_samples": bad_samples},
            recipe=self._recipe.model_dump(mode="json"),
            world_size=distributed.world_size(),
        )

    def _evaluate(self, evaluators: Sequence[Evaluator]) -> dict[str, float]:
        """Run the evaluators on the main process, on the student in evaluation mode."""
        model, _ = self._whole_models()
        numbers: dict[str, float] = {}
        if model is not None:
            model.eval()
            for evaluator in evaluators:
                numbers.update(evaluator(model, self._step))
            self._method.train()
        distributed.barrier()
        return numbers

    def _export(self) -> None:
        """Write model/ last: its presence says that the run is finished."""
        student, teacher = self._whole_models()
        origin = {
            **provenance(self._device),
            "step": self._step,
            "num_nonfinite_steps": self._num_nonfinite,
        }
        parts: list[tuple[CustomTextCLIP | None, str, Weights]] = [
            (teacher, TEACHER_FOLDER, "teacher"),
            (student, MODEL_FOLDER, "student"),
        ]
        for model, folder, weights in parts:
            if model is not None:
                write_model_folder(
                    model,
                    self._output / folder,
                    recipe=self._recipe,
                    weights=weights,
                    provenance=origin,
                )
        distributed.barrier()

    def _whole_models(self) -> tuple[CustomTextCLIP | None, CustomTextCLIP | None]:
        """Student and teacher with all their weights, on the main process (else None)."""
        if isinstance(self._parallel, Replicas):
            if not distributed.is_main():
                return None, None
            return self._method.model, self._method.teacher_model()
        checkpoint = self._checkpoint()
        if not distributed.is_main():
            return None, None
        student = model_of(checkpoint, self._recipe, weights="student", where="this run")
        if not has_teacher(checkpoint):
            return student, None
        teacher = model_of(checkpoint, self._recipe, weights="teacher", where="this run")
        return student, teacher

    def _nonfinite_error(self, readback: Readback, raws: list[RawBatch]) -> TrainingError:
        """Say which term, at which step, from which inputs."""
        step = self._step - 1  # the one that failed is counted already
        batches = (
            self._prepare(raw, number, step) for number, raw in enumerate(_same_length(raws))
        )
        found = nonfinite.describe(self._method, batches, autocast=self._autocast)
        bad = nonfinite.shortened(self._bad_gradients)
        gradients = f" Gradients not finite: {bad}." if bad else ""
        paths = self._store.paths()
        kept = f"The last good checkpoint is {paths[-1]}." if paths else "There is no checkpoint."
        return TrainingError(
            f"{readback.not_finite()} not finite for {self._nonfinite_in_row} steps in a row, up "
            f"to step {step}.{gradients} Ranges at that step: {found} {kept} "
            "Lower optimizer.lr, set optimizer.clip_grad_norm=1, or precision=fp32."
        )


class _NoLog:
    """Stands in for `RunLog` on ranks that do not log."""

    def __enter__(self) -> _NoLog:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def write(self, step: int, numbers: object) -> None:
        """Nothing."""


def _open_log(output: Path, start_step: int, recipe: Recipe) -> RunLog | _NoLog:
    if not distributed.is_main():
        return _NoLog()
    return RunLog(
        output,
        start_step=start_step,
        tensorboard=recipe.log.tensorboard,
        wandb_project=recipe.log.wandb_project,
        name=recipe.name,
        recipe=recipe.model_dump(mode="json"),
    )


@contextlib.contextmanager
def _one_process_at_a_time(output: Path) -> Iterator[None]:
    """Hold the run's lock on the main process; another run on this folder waits."""
    with contextlib.ExitStack() as stack:
        if distributed.is_main():
            try:
                stack.enter_context(storage.exclusive(output / "run", timeout=0.2))
            except StorageError:
                logger.info("Another process trains in %s; waiting for it.", output)
                stack.enter_context(storage.exclusive(output / "run"))
        distributed.barrier()
        yield


def _claim_folder(output: Path, recipe: Recipe) -> None:
    """Write recipe.yaml, or make sure that the one there is of the same computation.

    Raises:
        ConfigError: The folder holds another run.
    """
    path = output / RECIPE_FILE
    if path.is_file():
        there = load_recipe(str(path))
        if there.computation_fingerprint() != recipe.computation_fingerprint():
            ours, theirs = recipe.model_dump(mode="json"), there.model_dump(mode="json")
            keys = [key for key in ours if ours[key] != theirs.get(key) and key != "name"]
            raise ConfigError(
                f"{output} holds a run of another recipe; it differs in: {', '.join(keys)}. "
                "Choose another folder with --output, or remove that one."
            )
    storage.write_text(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def _batch_size_per_gpu(recipe: Recipe, num_processes: int) -> int:
    """Samples of a micro-batch on one device.

    Raises:
        ConfigError: The global batch cannot be divided.
    """
    parts = num_processes * recipe.accumulation_steps
    if recipe.global_batch_size % parts:
        raise ConfigError(
            f"global_batch_size={recipe.global_batch_size} cannot be divided over {num_processes} "
            f"processes x {recipe.accumulation_steps} accumulation steps. Choose a multiple of "
            f"{parts}."
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


def _same_length(raws: list[RawBatch]) -> list[RawBatch]:
    """Pad the captions of all micro-batches to one length."""
    length = max(raw.tokens.shape[1] for raw in raws)
    return [
        RawBatch(
            images=raw.images,
            tokens=torch.nn.functional.pad(
                raw.tokens, (0, length - raw.tokens.shape[1]), value=PAD_TOKEN_ID
            ),
            ssl_images=raw.ssl_images,
            keys=raw.keys,
        )
        for raw in raws
    ]


def _numbers(state: Snapshot) -> dict[str, float]:
    """What one line of the log holds."""
    return {
        "epoch": state.epoch,
        **state.terms,
        **state.values,
        "images_per_second": state.images_per_second,
        "data_wait_fraction": state.data_wait_fraction,
        "memory_gib": state.memory_bytes / 2**30,
        "num_nonfinite_steps": state.num_nonfinite_steps,
    }


def _copy(values: list[Tensor], *, to: list[Tensor]) -> None:
    if values:
        with torch.no_grad():
            torch._foreach_copy_(to, values)


def _all_finite(method: Method) -> bool:
    """Whether every trained weight is finite."""
    with torch.no_grad():
        sums = [parameter.sum() for parameter in method.parameters() if parameter.requires_grad]
        return bool(torch.stack(sums).isfinite().all())


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
