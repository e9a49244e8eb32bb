"""The trainer: one recipe, from first step to model folder, resumable at any step.

Every random draw of a step follows from (seed, step, rank): weights from the seed, the data and
its crops from (seed, epoch, sample), masks and augmentation from a generator seeded for each step.
So a run that is killed and started again computes what it would have computed (bit for bit on a
CPU), and a checkpoint needs no generator's state.

`run_folder.py` says what a run's folder holds, `step.py` does a step, `run_length.py` counts them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CustomTextCLIP

from maskclip_bench import distributed
from maskclip_bench.data.batch import RawBatch
from maskclip_bench.data.pairs.loader import PairLoader
from maskclip_bench.data.tokenizer import CaptionTokenizer
from maskclip_bench.errors import TrainingError
from maskclip_bench.pretrain.assembly import prepare, tokenizer_of
from maskclip_bench.pretrain.checkpoints import RunCheckpoints
from maskclip_bench.pretrain.export import Weights, write_model_folder
from maskclip_bench.pretrain.held_out import ACCURACY, LOSS, HeldOutPairs, check_held_out
from maskclip_bench.pretrain.init_weights import start_from
from maskclip_bench.pretrain.memory import CHOSEN, fitted, out_of_memory_told
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.preparation import Prepared
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.pretrain.run_folder import RunFolder
from maskclip_bench.pretrain.run_length import RunLength, batch_size_per_gpu
from maskclip_bench.pretrain.run_log import logged, open_log
from maskclip_bench.pretrain.step import Stepper, StepResult
from maskclip_bench.progress import Report, Snapshot, SnapshotCallback
from maskclip_bench.runtime import derive_seed, free_memory, peak_memory, provenance
from maskclip_bench.training import nonfinite
from maskclip_bench.training.checkpoint import Checkpoint
from maskclip_bench.training.interruption import STOP_SIGNALS, Interruption, RunStopped
from maskclip_bench.training.logs import NoLog, RunLog
from maskclip_bench.training.meter import Meter

logger = logging.getLogger(__name__)

Evaluator = Callable[[CustomTextCLIP, int], dict[str, float]]
"""(the student in evaluation mode, steps done) -> numbers to log."""


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
        DataError: The data are missing or not those of the run that is resumed, or too many
            samples are broken.
        CheckpointError: No checkpoint of the run can be read.
        DamagedFileError: The finished model is damaged, and no checkpoint is left.
        TrainingError: Losses stopped being finite, or memory ran out.
        NonFiniteError: Weights are not finite at the end; no model is written.
        StorageError: The disk refused.
    """
    device = torch.device(device)
    cuda_devices = [device] if device.type == "cuda" else []
    folder = RunFolder(output)
    with folder.locked(), torch.random.fork_rng(devices=cuda_devices):
        if recipe.memory == "auto":
            recipe = _fitted(recipe, folder, device)
        if not distributed.on_main(lambda: "finished" if folder.is_finished(recipe) else None):
            with out_of_memory_told(recipe):
                run = _Run(
                    recipe, folder=folder, data_root=data_root, workspace=workspace, device=device
                )
                run.go(evaluators=evaluators, progress=progress, stop_signals=stop_signals)
    return folder.model


def _fitted(recipe: Recipe, folder: RunFolder, device: torch.device) -> Recipe:
    """The recipe as it fits into the device's memory, or as this run was begun."""

    def choose() -> str:
        begun = folder.recorded()
        if begun is None or begun.memory != "auto":
            whole = recipe.model_copy(update={"accumulation_steps": 1})
            batch_size = batch_size_per_gpu(whole, distributed.world_size())
            shards = distributed.world_size() if recipe.parallel == "fsdp" else 1
            free = free_memory(device)
            begun = fitted(whole, batch_size=batch_size, free_bytes=free, shards=shards)
        return json.dumps({name: getattr(begun, name) for name in CHOSEN})

    return recipe.model_copy(update=json.loads(distributed.on_main(choose)))


class _Run:
    """One run of a recipe on this rank."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        folder: RunFolder,
        data_root: Path,
        workspace: Path | None,
        device: torch.device,
    ) -> None:
        self._recipe = recipe
        self._folder = folder
        self._device = device
        distributed.on_main(partial(folder.claim, recipe))
        batch_size = batch_size_per_gpu(recipe, distributed.world_size())
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        tokenizer = tokenizer_of(recipe)
        fields = recipe.method_fields(workspace=workspace)
        self._method: Method = build_method(recipe.method.name, fields, recipe.model, tokenizer)
        self._loader = PairLoader(
            recipe.data,
            data_root=data_root,
            tokenizer=tokenizer,
            image_size=recipe.model.image_size,
            num_ssl_views=self._method.num_ssl_views,
            batch_size_per_gpu=batch_size,
            seed=recipe.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            device=device,
        )
        self._data = self._loader.identity(device=device)
        self._held_out = self._open_held_out(data_root, tokenizer)
        self._held_out_numbers: dict[str, float] = {}  # the newest, shown with every step
        self._length = RunLength.of(recipe, batches_per_epoch=self._loader.steps_per_epoch)
        if self._length.warmup_steps >= self._length.total_steps and distributed.is_main():
            logger.warning(
                "The warm-up has %d steps and the run %d: the learning rate never reaches "
                "optimizer.lr. Lower optimizer.warmup_steps (or warmup_epochs).",
                self._length.warmup_steps,
                self._length.total_steps,
            )
        self._checkpoints = RunCheckpoints(recipe, folder)
        self._step = 0
        self._bad_before = 0  # bad samples of this epoch before the run was interrupted
        self._num_replaced = 0  # and since, up to the step that was told last
        checkpoint = self._checkpoints.newest(self._data)
        if checkpoint is not None:
            self._data |= {key: checkpoint.data[key] for key in ("init",) if key in checkpoint.data}
        elif recipe.init is not None:
            self._data["init"] = self._start(workspace)
        self._strategy, self._optimizer = prepare(recipe, self._method, device)
        self._stepper = Stepper(
            recipe,
            self._method,
            strategy=self._strategy,
            optimizer=self._optimizer,
            length=self._length,
            device=device,
        )
        if checkpoint is not None:
            self._resume(checkpoint)

    def _open_held_out(self, data_root: Path, tokenizer: CaptionTokenizer) -> list[Evaluator]:
        """The measurement of held-out pairs, on the main process, if the recipe asks for it."""
        recipe = self._recipe
        opened: list[Evaluator] = []
        check_held_out(recipe, self._method, data_root=data_root)

        def read() -> None:
            assert recipe.evaluation.held_out is not None
            pairs = HeldOutPairs(
                recipe.evaluation.held_out,
                augment=recipe.data.augment,
                tokenizer=tokenizer,
                image_size=recipe.model.image_size,
                global_batch_size=recipe.global_batch_size,
                data_root=data_root,
                device=self._device,
                bf16=recipe.precision == "bf16",
            )
            opened.append(pairs)

        if recipe.evaluation.held_out is not None:
            distributed.on_main(read)
        return opened

    def _start(self, workspace: Path | None) -> str:
        """Give the student the recipe's weights; the main process comes first, and downloads them.

        Returns:
            Their SHA-256.
        """
        start = partial(start_from, self._method, self._recipe, workspace=workspace)
        content = distributed.on_main(start)
        if not distributed.is_main():
            start()
        return content

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self._checkpoints.restore(checkpoint, self._strategy, self._optimizer)
        self._step = checkpoint.step
        self._stepper.nonfinite.total = checkpoint.counters.get("num_nonfinite", 0)
        self._bad_before = checkpoint.counters.get("bad_samples", 0)
        logger.info("Going on from step %d of %d.", self._step, self._length.total_steps)
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
        length = self._length
        meter = Meter(self._step, length.total_steps, self._recipe.global_batch_size)
        is_main = distributed.is_main()
        report = Report(self._folder.root if is_main else None, progress if is_main else None)
        with (
            open_log(self._folder.root, self._step, self._recipe) as log,
            contextlib.closing(self._checkpoints),
            contextlib.closing(self._prepared()) as batches,
            Interruption(stop_signals) as interruption,
        ):
            while self._step < length.total_steps:
                with meter.waiting():
                    prepared = next(batches)
                results = self._stepper(prepared, stop=interruption.requested)
                self._step += 1
                meter.step()
                stop = any(result.stop for result in results)
                if stop or self._something_is_due(evaluators):
                    results += self._stepper.finish()
                for result in results:
                    self._tell(result, meter, log, report)
                    self._check_finite(result)
                self._measure(evaluators, log, meter)
                if stop or self._is_time(length.checkpoint_every):
                    self._save()
                if stop and not self._is_last:
                    self._checkpoints.wait()
                    raise RunStopped
            self._checkpoints.wait()
            self._export()

    def _something_is_due(self, evaluators: Sequence[Evaluator]) -> bool:
        """Whether the weights are looked at after this step: all must be known of it."""
        length = self._length
        evaluate_every = length.evaluate_every if evaluators else None
        often = (length.checkpoint_every, length.held_out_every, evaluate_every)
        return any(self._is_time(every) for every in often)

    @property
    def _is_last(self) -> bool:
        return self._step == self._length.total_steps

    def _is_time(self, every: int | None, *, step: int | None = None) -> bool:
        """Whether something that is done every so many steps, and at the end, is due.

        Args:
            every: How many; None is never.
            step: After which step; by default the newest.
        """
        step = self._step if step is None else step
        return every is not None and (step % every == 0 or step == self._length.total_steps)

    def _prepared(self) -> Generator[Prepared, None, None]:
        """The steps that are left, drawn and on their way to the device."""
        with contextlib.closing(self._batches()) as batches:
            yield from self._stepper.preparation.ahead(
                batches,
                first_step=self._step,
                last_step=self._length.total_steps - 1,
                num_replaced=lambda: self._loader.num_replaced,
            )

    def _batches(self) -> Generator[list[RawBatch], None, None]:
        """The micro-batches of each step, from the current step on, without end."""
        accumulation = self._recipe.accumulation_steps
        epoch, done = divmod(self._step, self._length.steps_per_epoch)
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

    # What is told and written.

    def _tell(self, result: StepResult, meter: Meter, log: RunLog | NoLog, report: Report) -> None:
        """Log and report a step."""
        step = result.prepared.step + 1
        epoch_ends = step % self._length.steps_per_epoch == 0
        snapshot = self._snapshot(result, meter)
        self._num_replaced = result.prepared.num_replaced
        if self._is_time(self._recipe.log.every_steps, step=step) or epoch_ends:
            samples = self._unusable_samples() if epoch_ends or self._is_last else {}
            log.write(step, {**logged(snapshot), **samples})
            meter.restart()
        if epoch_ends:
            self._bad_before = 0
        shown = {**snapshot.values, **self._held_out_numbers}
        report(replace(snapshot, values=shown), force=step == self._length.total_steps)

    def _snapshot(self, result: StepResult, meter: Meter) -> Snapshot:
        step = result.prepared.step + 1
        return Snapshot(
            step=step,
            total_steps=self._length.total_steps,
            epoch=step / self._length.steps_per_epoch,
            images_per_second=meter.images_per_second,
            eta_seconds=meter.eta_seconds(self._step),
            data_wait_fraction=meter.wait_fraction,
            memory_bytes=peak_memory(self._device),
            terms=result.terms,
            values=result.values,
            num_nonfinite_steps=self._stepper.nonfinite.total,
        )

    def _unusable_samples(self) -> dict[str, float]:
        """How many samples were replaced in this epoch, and left out of all, over all ranks."""
        return {"bad_samples": self._num_bad_samples(), "lost_samples": self._loader.num_lost}

    def _num_bad_samples(self) -> int:
        """Samples replaced so far in the epoch under way, over all ranks."""
        here = torch.tensor(self._num_replaced, device=self._device)
        return self._bad_before + int(distributed.all_reduce_sum(here))

    def _save(self) -> None:
        """Write a checkpoint, unless the weights are in doubt."""
        if self._stepper.nonfinite.in_row:
            logger.warning("No checkpoint at step %d, which was skipped.", self._step)
            return
        if not _all_finite(self._method):
            logger.warning("No checkpoint at step %d: weights are not finite.", self._step)
            return
        in_epoch = self._step % self._length.steps_per_epoch > 0
        self._checkpoints.save(
            self._strategy,
            self._optimizer,
            step=self._step,
            counters={
                "num_nonfinite": self._stepper.nonfinite.total,
                "bad_samples": self._num_bad_samples() if in_epoch else 0,
            },
            data=self._data,
        )

    def _measure(self, evaluators: Sequence[Evaluator], log: RunLog | NoLog, meter: Meter) -> None:
        """Log what is measured now and then: held-out pairs, the caller's evaluators."""
        pairs_are_due = self._is_time(self._length.held_out_every)
        others_are_due = self._is_time(self._length.evaluate_every if evaluators else None)
        if not pairs_are_due and not others_are_due:
            return
        due = [*(self._held_out if pairs_are_due else []), *(evaluators if others_are_due else [])]
        numbers = self._evaluate(due)
        self._held_out_numbers |= {
            name: value for name, value in numbers.items() if name in (LOSS, ACCURACY)
        }
        log.write(self._step, numbers)
        meter.restart()

    def _evaluate(self, evaluators: Sequence[Evaluator]) -> dict[str, float]:
        """Run the evaluators on the main process, on the student in evaluation mode."""
        model, _ = self._strategy.whole_models()
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
        models = self._strategy.whole_models()
        distributed.on_main(partial(self._write_models, *models))

    def _write_models(self, student: Any, teacher: Any) -> None:
        origin = {
            **provenance(self._device),
            "step": self._step,
            "num_nonfinite_steps": self._stepper.nonfinite.total,
            "num_devices": distributed.world_size(),
        }
        if "init" in self._data:
            origin["init_sha256"] = self._data["init"]
        parts: list[tuple[CustomTextCLIP | None, Path, Weights]] = [
            (teacher, self._folder.teacher, "teacher"),
            (student, self._folder.model, "student"),
        ]
        for model, folder, weights in parts:
            if model is not None:
                write_model_folder(
                    model, folder, recipe=self._recipe, weights=weights, provenance=origin
                )

    def _check_finite(self, result: StepResult) -> None:
        """Stop a run of which too many steps in a row were skipped: the last ones, or all.

        Raises:
            TrainingError: Which term, at which step, from which inputs.
        """
        count = self._stepper.nonfinite
        limit = min(self._recipe.max_nonfinite_steps, self._length.total_steps)
        if count.in_row < limit:
            return
        step = result.prepared.step
        found = self._stepper.describe(result.prepared.raws, step=step)
        bad = nonfinite.shortened(count.gradients)
        gradients = f" Gradients not finite: {bad}." if bad else ""
        paths = self._checkpoints.paths()
        kept = f"The last good checkpoint is {paths[-1]}." if paths else "There is no checkpoint."
        raise TrainingError(
            f"{result.bad} not finite for {count.in_row} steps in a row, up to step {step}."
            f"{gradients} Ranges at that step: {found} {kept} "
            "Lower optimizer.lr, set optimizer.clip_grad_norm=1, or precision=fp32."
        )


def _all_finite(method: Method) -> bool:
    """Whether every trained weight is finite."""
    with torch.no_grad():
        sums = [parameter.sum() for parameter in method.parameters() if parameter.requires_grad]
        return bool(torch.stack(sums).isfinite().all())
