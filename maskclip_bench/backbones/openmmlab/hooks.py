"""What a run of mmseg or mmdet says about itself: kernels, progress, scores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torchvision
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from maskclip_bench.backbones.openmmlab import mmcv_kernels, safe_loading
from maskclip_bench.backbones.openmmlab.dense_checkpoints import seal_new
from maskclip_bench.backbones.openmmlab.script_flags import global_batch_size
from maskclip_bench.backbones.openmmlab.trunk_backbone import TrunkBackbone
from maskclip_bench.errors import DataError
from maskclip_bench.job_folder import write_progress
from maskclip_bench.storage import write_json

REPORT_FILE = "run_report.json"
PROGRESS_EVERY_SECONDS = 0.5


@HOOKS.register_module()
class RunReport(Hook):
    """Log the kernels behind `mmcv.ops` once, and write `<work_dir>/run_report.json`.

    Args:
        progress_file: If set, `{"stage", "done", "total"}` is kept there, twice a second.
        scores_file: If set, the metrics of a test run go there as the toolbox computed them.
    """

    priority = "LOWEST"

    def __init__(self, progress_file: str | None = None, scores_file: str | None = None) -> None:
        self.progress_file = Path(progress_file) if progress_file else None
        self.scores_file = Path(scores_file) if scores_file else None
        self._written = 0.0
        self._noted: tuple[int, str] | None = None
        self._trained_classes: Any = None

    def before_run(self, runner: Runner) -> None:
        """Called once, before training or testing begins, and before weights are initialized."""
        kernels = mmcv_kernels.kernels_in_use()
        runner.logger.info(f"mmcv operators: {kernels} (torchvision {torchvision.__version__})")
        if runner._resume and (runner._load_from or find_latest_checkpoint(runner.work_dir)):
            for module in runner.model.modules():
                if isinstance(module, TrunkBackbone):
                    module.expect_checkpoint()
        self._write_report(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Called when a checkpoint was read, before or after `before_run`."""
        meta = checkpoint.get("meta") or {}
        self._trained_classes = (meta.get("dataset_meta") or {}).get("classes")
        self._write_report(runner)

    def before_train(self, runner: Runner) -> None:
        """Warn where the batch of a step is not the one that the config's rates are for."""
        self._noted = _last_checkpoint_note(Path(runner.work_dir))
        planned = global_batch_size(runner.cfg, runner.cfg.filename or "")
        steps = int(getattr(runner.optim_wrapper, "_accumulative_counts", 1))
        real = runner.world_size * int(runner.train_dataloader.batch_size or 1) * steps
        scaled = (runner.cfg.get("auto_scale_lr") or {}).get("enable", False)
        if planned is not None and real != planned and not scaled:
            runner.logger.warning(
                f"The config is written for {planned} images a step, and this run takes {real} "
                f"({runner.world_size} processes, {real // runner.world_size} images each). Set "
                f"train_dataloader.batch_size so that they come to {planned}, or pass "
                "--auto-scale-lr (mmdet), or change the learning rate."
            )

    def before_test(self, runner: Runner) -> None:
        """A label means the same class as in training.

        Raises:
            DataError: The tested data has the same classes in another order.
        """
        metainfo = getattr(runner.test_dataloader.dataset, "metainfo", None) or {}
        tested, trained = metainfo.get("classes"), self._trained_classes
        if tested is None or trained is None or list(tested) == list(trained):
            return
        if sorted(tested) == sorted(trained):
            raise DataError(
                f"The tested data lists its classes as {', '.join(list(tested)[:5])}..., and the "
                f"checkpoint was trained with {', '.join(list(trained)[:5])}...: a label would "
                "mean another class. Set classes=[...] of the test data set to the order of "
                "training."
            )
        runner.logger.warning(
            "The tested data has other classes than the checkpoint was trained on"
        )

    def _write_report(self, runner: Runner) -> None:
        if not is_main_process():
            return
        parameters = list(_unwrapped(runner.model).parameters())
        report = {
            "mmcv_operators": mmcv_kernels.kernels_in_use(),
            "torchvision": torchvision.__version__,
            "world_size": runner.world_size,
            "num_parameters": sum(p.numel() for p in parameters),
            "num_trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        }
        unpickled = safe_loading.unpickled_files()
        if unpickled:
            report["unpickled_files"] = unpickled
        write_json(Path(runner.work_dir) / REPORT_FILE, report)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Note how far training is, and the hash of a new checkpoint."""
        self._seal_checkpoints(Path(runner.work_dir))
        self._progress("training", runner.iter + 1, runner.max_iters)

    def after_train_epoch(self, runner: Runner) -> None:
        """Note the hash of a new checkpoint."""
        self._seal_checkpoints(Path(runner.work_dir))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Note the hash of the newest checkpoint again, if `save_best` wrote it again."""
        self._seal_checkpoints(Path(runner.work_dir))

    def _seal_checkpoints(self, folder: Path) -> None:
        """After mmengine's `CheckpointHook`, which writes `last_checkpoint` at the end."""
        written = _last_checkpoint_note(folder)
        if written is not None and written != self._noted and is_main_process():
            self._noted = written
            seal_new(folder, written=written[1])

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Note how far testing is."""
        self._progress("testing", batch_idx + 1, len(runner.test_dataloader))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the scores."""
        if self.scores_file is not None and is_main_process():
            scores = {name: float(value) for name, value in (metrics or {}).items()}
            write_json(self.scores_file, scores)

    def _progress(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        late = now - self._written > PROGRESS_EVERY_SECONDS or done == total
        if self.progress_file is not None and late and is_main_process():
            self._written = now
            write_progress(self.progress_file, stage, done, total)


def _last_checkpoint_note(folder: Path) -> tuple[int, str] | None:
    """When mmengine last said which checkpoint is the newest, and its name; None = never."""
    note = folder / "last_checkpoint"
    try:
        return note.stat().st_mtime_ns, Path(note.read_text(encoding="utf-8").strip()).name
    except OSError:
        return None


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if hasattr(model, "module") else model
