"""A dense cell of the benchmark as one job: fill a config, train (or go on), test on each split.

    python -m maskclip_bench.backbones.openmmlab.dense_cell JOB.json
    torchrun --nproc_per_node=8 -m maskclip_bench.backbones.openmmlab.dense_cell JOB.json

A config's `global_batch_size` is divided among the processes. An interrupted training goes on from
its last checkpoint.

The protocols `segmentation` and `detection` write the message (`backbones/dense_job.py`, which also
names all files of the work folder) and run this as a subprocess. The
training and the testing themselves are the toolbox's own scripts (see `toolbox_scripts`), on a
config that is written out in full into the work folder, so that a run can be repeated by hand.

The work folder afterwards: `config_train.py`, `config_{split}.py`, mmengine's checkpoints and
logs, `trained.json` once training is over, and per split `scores_{split}.json` (as the toolbox
printed them) and `outcomes_{split}.npz`. What is there is not done again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier

from maskclip_bench.backbones.dense_job import DenseJob, DenseSplit, read_job
from maskclip_bench.backbones.openmmlab.toolbox_scripts import (
    innermost_datasets,
    launch,
    leave_group,
)
from maskclip_bench.backbones.openmmlab.trunk_sources import TrunkSource
from maskclip_bench.errors import CheckpointError, ConfigError, MaskCLIPBenchError
from maskclip_bench.jobs import end_with_parent
from maskclip_bench.storage import write_json, write_text

BACKBONES = ("MaskCLIPViT", "MaskCLIPPyramid")
LAST_CHECKPOINT = "last_checkpoint"


def run(job: DenseJob) -> None:
    """Do what is left of a job.

    Raises:
        MaskCLIPBenchError: See `fill` and `launch`.
    """
    try:
        _run(job)
    finally:
        leave_group()


def _run(job: DenseJob) -> None:
    folder = job.folder
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    launcher = ["--launcher", "pytorch"] if world_size > 1 else []
    if not folder.trained.is_file():
        config = training_config(job, world_size=world_size)
        path = write_config(config, folder.training_config)
        arguments = ["--work-dir", job.work_dir, *launcher]
        if config.resume and job.toolbox == "mmseg":
            arguments.append("--resume")  # its script overrides the config
        launch(job.toolbox, "train", str(path), arguments, keep_group=True)
        barrier()  # the main process writes the last checkpoint
        write_json(folder.trained, {"checkpoint": checkpoint_to_test(folder.path).name})
    for split in job.tests:
        if folder.scores(split.name).is_file():
            continue
        path = write_config(fill(job, split=split), folder.test_config(split.name))
        arguments = [str(checkpoint_to_test(folder.path)), "--work-dir", job.work_dir, *launcher]
        launch(job.toolbox, "test", str(path), arguments, keep_group=True)


def training_config(job: DenseJob, *, world_size: int) -> Config:
    """The config to train with: no validation (the tests are the job's), and on from a checkpoint.

    Raises:
        ConfigError: See `fill`; or the global batch cannot be divided among the processes.
    """
    config = fill(job, split=job.tests[0])
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    if "global_batch_size" in config:
        if config.global_batch_size % world_size:
            raise ConfigError(
                f"The config's global batch of {config.global_batch_size} cannot be divided among "
                f"{world_size} processes. Let CUDA_VISIBLE_DEVICES name a number of GPUs that "
                "divides it, or set global_batch_size in the options."
            )
        config.train_dataloader.batch_size = config.global_batch_size // world_size
    checkpoint = last_checkpoint(job.folder.path)
    config.resume = checkpoint is not None
    if checkpoint is not None:
        config.load_from = str(checkpoint)
    return config


def fill(job: DenseJob, *, split: DenseSplit) -> Config:
    """The job's config with its backbone, its data and `split` as what is tested.

    Raises:
        ConfigError: The config has no backbone of ours, or a data set of another kind.
    """
    config = Config.fromfile(job.config)
    backbone = config.model.backbone
    if backbone.type not in BACKBONES:
        raise ConfigError(
            f"{job.config} has the backbone {backbone.type!r}, which cannot take the weights of "
            f"a row. Use {' or '.join(BACKBONES)}."
        )
    for key in TrunkSource.model_fields:
        backbone.pop(key, None)
    backbone.update(job.backbone)
    _place_split(config.train_dataloader, job.data_root, job.train)
    for name in ("val_dataloader", "test_dataloader"):
        _place_split(config[name], job.data_root, split)
    metric = "SegmentationOutcomes" if split.masks is not None else "DetectionOutcomes"
    outcomes = {"type": metric, "file": str(job.folder.outcomes(split.name))}
    for name in ("val_evaluator", "test_evaluator"):
        evaluators = config[name] if isinstance(config[name], list) else [config[name]]
        for evaluator in evaluators:
            if "ann_file" in evaluator:
                evaluator.ann_file = str(Path(job.data_root, split.annotations or ""))
        config[name] = [*evaluators, outcomes]
    config.custom_hooks = [
        hook for hook in config.get("custom_hooks", []) if hook["type"] != "RunReport"
    ] + [
        {
            "type": "RunReport",
            "progress_file": str(job.folder.progress),
            "scores_file": str(job.folder.scores(split.name)),
        }
    ]
    if job.options:
        config.merge_from_dict(dict(job.options))
    return config


def _place_split(loader: Any, data_root: str, split: DenseSplit) -> None:
    """Point the innermost data sets of a loader to a split."""
    for dataset in innermost_datasets(loader):
        dataset.data_root = data_root
        if split.masks is not None:
            if "ann_file" in dataset:
                raise ConfigError(
                    f"The config's data set {dataset.get('type')!r} reads a COCO annotation file, "
                    "not masks. Use a config of configs/mmseg/."
                )
            if "split" in dataset:
                dataset.split = Path(split.images).name
            else:
                dataset.data_prefix = {"img_path": split.images, "seg_map_path": split.masks}
        elif "ann_file" in dataset:
            dataset.ann_file = split.annotations
            dataset.data_prefix = {"img": split.images.rstrip("/") + "/"}
        else:
            raise ConfigError(
                f"The config's data set {dataset.get('type')!r} takes no COCO annotation file. "
                "Use a config of configs/mmdet/."
            )


def write_config(config: Config, path: Path) -> Path:
    """Write a config as plain Python, everything resolved."""
    lines = [f"{key} = {value!r}\n" for key, value in config.to_dict().items()]
    write_text(path, '"""Written by maskclip-bench; every value resolved."""\n\n' + "".join(lines))
    return path


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that mmengine wrote last, wherever the folder was moved; None without one."""
    pointer = folder / LAST_CHECKPOINT
    written = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    if not written:
        return None
    candidates = (folder / Path(written).name, Path(written))
    return next((path for path in candidates if path.is_file()), None)


def checkpoint_to_test(folder: Path) -> Path:
    """The last checkpoint.

    Raises:
        CheckpointError: There is none, or it was removed.
    """
    path = last_checkpoint(folder)
    if path is None:
        raise CheckpointError(
            f"{folder} has no checkpoint to test. Delete the folder to train again."
        )
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ...job JOB.json`; returns the exit code."""
    end_with_parent()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if len(given) != 1:
            raise ConfigError(
                "Usage: python -m maskclip_bench.backbones.openmmlab.dense_cell JOB.json"
            )
        run(read_job(Path(given[0])))
    except MaskCLIPBenchError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
