"""A dense cell of the benchmark as one job: fill a config, train (or go on), test on each split.

    python -m maskclip_bench.backbones.openmmlab.dense_cell JOB.json
    torchrun --nproc_per_node=8 -m maskclip_bench.backbones.openmmlab.dense_cell JOB.json

A config's `global_batch_size` is divided among the processes. An interrupted training goes on from
its last checkpoint.

The protocols `segmentation` and `detection` write the message (`backbones/dense_job.py`, which also
names all files of the work folder) and run this as a subprocess. The
training and the testing themselves are the toolbox's own scripts (see `toolbox_scripts`), on a
config that is written out in full into the work folder, so that a run can be repeated by hand.

The row is loaded once, on the CPU, before training: its weights and features pass the checks of
every load, and its mean and standard deviation go into the config.

The work folder afterwards: `config_train.py`, `config_{split}.py`, mmengine's checkpoints and
logs, `trained.json` once training is over, and per split `scores_{split}.json` (as the toolbox
printed them), `outcomes_{split}.npz`, and `pictures_{split}.json` (see the module `pictures`).
What is there is not done again.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process

from maskclip_bench.backbones.declaration import load_backbone_declaration
from maskclip_bench.backbones.dense_job import DenseJob, DenseSplit, read_job
from maskclip_bench.backbones.loading import load_backbone
from maskclip_bench.backbones.openmmlab.dense_checkpoints import (
    checkpoint_to_test,
    last_checkpoint,
)
from maskclip_bench.backbones.openmmlab.remembered_maps import RememberedMaps
from maskclip_bench.backbones.openmmlab.toolbox_scripts import (
    innermost_datasets,
    launch,
    leave_group,
)
from maskclip_bench.backbones.openmmlab.trunk_backbone import TrunkBackbone
from maskclip_bench.backbones.openmmlab.trunk_sources import TrunkSource
from maskclip_bench.errors import EXIT_STORAGE, ConfigError, MaskCLIPBenchError, storage_error
from maskclip_bench.jobs import end_with_parent
from maskclip_bench.runtime import Workspace
from maskclip_bench.storage import read_object, remove_leftovers, write_json, write_text

logger = logging.getLogger(__name__)

REMEMBERED_BYTES = 256 * 2**20
"""Maps of a frozen backbone on a CPU that a job keeps: of small images that come again."""

_DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

BACKBONES = ("MaskCLIPViT", "MaskCLIPPyramid")
OUTCOMES = ("SegmentationOutcomes", "DetectionOutcomes")


def run(job: DenseJob) -> None:
    """Do what is left of a job.

    Raises:
        MaskCLIPBenchError: See `fill` and `launch`.
    """
    try:
        _run(job)
    finally:
        TrunkBackbone.remembered = None
        leave_group()


def _run(job: DenseJob) -> None:
    folder = job.folder
    remove_leftovers(folder.path)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    launcher = ["--launcher", "pytorch"] if world_size > 1 else []
    loaded_row(job)
    maps = RememberedMaps(REMEMBERED_BYTES, None if job.maps is None else Path(job.maps))
    TrunkBackbone.remembered = maps
    if not _is_trained(job):
        config = training_config(job, world_size=world_size)
        path = write_config(config, folder.training_config)
        arguments = ["--work-dir", job.work_dir, *launcher]
        if config.resume and job.toolbox == "mmseg":
            arguments.append("--resume")  # its script overrides the config
        _launch(job, "train", path, arguments)
        barrier()  # the main process writes the last checkpoint
        write_json(folder.trained, {"checkpoint": checkpoint_to_test(folder.path).name})
    for split in job.tests:
        if folder.scores(split.name).is_file():
            continue
        path = write_config(fill(job, split=split), folder.test_config(split.name))
        arguments = [str(checkpoint_to_test(folder.path)), "--work-dir", job.work_dir, *launcher]
        _launch(job, "test", path, arguments)
    if is_main_process():
        maps.save()


def _launch(job: DenseJob, tool: str, config: Path, arguments: Sequence[str]) -> None:
    """A script of the toolbox, on data and a config that were checked and written here."""
    launch(
        job.toolbox,
        tool,
        str(config),
        arguments,
        check_data=False,
        keep_group=True,
        format_configs=False,
    )


def _is_trained(job: DenseJob) -> bool:
    """Whether training is over and all scores, or else the last checkpoint, are there."""
    folder = job.folder
    if not folder.trained.is_file():
        return False
    if all(folder.scores(split.name).is_file() for split in job.tests):
        return True
    name = (read_object(folder.trained) or {}).get("checkpoint")
    checkpoint = last_checkpoint(folder.path)
    if checkpoint is not None and checkpoint.name == name:
        return True
    logger.warning("The trained checkpoint of %s is gone or damaged: training goes on", folder.path)
    folder.trained.unlink(missing_ok=True)
    return False


def training_config(job: DenseJob, *, world_size: int) -> Config:
    """The config to train with: on from a checkpoint, with validation if the job names a split.

    The tests are the job's own, after training.

    Raises:
        ConfigError: See `fill`; or the global batch cannot be divided among the processes.
    """
    config = fill(job, split=job.tests[0])
    if job.validate_on is None:
        config.val_dataloader = config.val_cfg = config.val_evaluator = None
    else:
        config.val_cfg = {"type": "AsideValLoop"}
        config.val_evaluator = [
            evaluator for evaluator in config.val_evaluator if evaluator.type not in OUTCOMES
        ]
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
    _place_split(config.train_dataloader, job, job.train)
    validation = job.validate_on or split
    _place_split(config.val_dataloader, job, validation)
    _place_split(config.test_dataloader, job, split)
    outcomes = {"type": "DetectionOutcomes", "file": str(job.folder.outcomes(split.name))}
    if split.samples is not None:
        outcomes |= {"type": "SegmentationOutcomes", "images": split.images}
    for name in ("val_evaluator", "test_evaluator"):
        evaluators = config[name] if isinstance(config[name], list) else [config[name]]
        for evaluator in evaluators:
            if "ann_file" in evaluator:
                tested = validation if name == "val_evaluator" else split
                evaluator.ann_file = tested.annotations
        config[name] = [*evaluators, outcomes]
    config.custom_hooks = [
        hook
        for hook in config.get("custom_hooks", [])
        if hook["type"] not in ("RunReport", "Pictures")
    ] + [
        {
            "type": "RunReport",
            "progress_file": str(job.folder.progress),
            "scores_file": str(job.folder.scores(split.name)),
        },
        {
            "type": "Pictures",
            "split": split.name,
            "folder": str(job.folder.pictures(split.name).with_suffix("")),
            "index_file": str(job.folder.pictures(split.name)),
            "images": split.images,
        },
    ]
    row = loaded_row(job)
    if row:
        scaled = {key: [round(255 * value, 4) for value in row[key]] for key in ("mean", "std")}
        config.merge_from_dict(
            {f"model.data_preprocessor.{key}": values for key, values in scaled.items()}
        )
    if job.options:
        config.merge_from_dict(dict(job.options))
    return config


def loaded_row(job: DenseJob) -> dict[str, Any]:
    """What loading the job's row says; kept in the work folder, which is for these weights alone.

    Returns:
        `mean`, `std` (fractions), `weights_state` and `transform`; empty if the job names no row.

    Raises:
        MaskCLIPBenchError: See `load_backbone`.
    """
    if "backbone" not in job.backbone:
        return {}
    file = job.folder.loaded_row
    known = read_object(file) or {}
    if {"mean", "std"} <= set(known):
        return known
    backbone = load_backbone(
        load_backbone_declaration(job.backbone["backbone"]),
        workspace=Workspace.open(),
        seed=job.backbone.get("seed", 0),
    )
    transform = backbone.transform
    found = {
        "mean": list(transform.mean or (0.0, 0.0, 0.0)),
        "std": list(transform.std or (1.0, 1.0, 1.0)),
        "weights_state": backbone.weights_fingerprint,
        "transform": backbone.transform_id,
    }
    write_json(file, found)
    return found


def _place_split(loader: Any, job: DenseJob, split: DenseSplit) -> None:
    """Point the innermost data sets of a loader to a split."""
    for dataset in innermost_datasets(loader):
        if split.samples is not None:
            _place_samples(dataset, job, split)
        elif "ann_file" in dataset:
            dataset.data_root = ""
            dataset.ann_file = split.annotations
            dataset.data_prefix = {"img": split.images.rstrip("/") + "/"}
            if job.classes and dataset.type == "COCOLayout":
                dataset.classes = list(job.classes)
            elif job.classes:
                dataset.metainfo = {"classes": tuple(job.classes)}
        else:
            raise ConfigError(
                f"The config's data set {dataset.get('type')!r} takes no COCO annotation file. "
                "Use a config of configs/mmdet/."
            )


def _place_samples(dataset: Any, job: DenseJob, split: DenseSplit) -> None:
    """Turn a data set that walks folders into one that reads the list of a split."""
    if "ann_file" in dataset:
        raise ConfigError(
            f"The config's data set {dataset.get('type')!r} reads a COCO annotation file, "
            "not masks. Use a config of configs/mmseg/."
        )
    file = job.folder.samples(split.name)
    write_json(file, split.samples)
    for key in ("data_root", "data_prefix", "split", "img_suffix", "seg_map_suffix", "metainfo"):
        dataset.pop(key, None)
    known = {"like": dataset.type} if job.classes is None else {"classes": list(job.classes)}
    dataset.update(type="SegmentationSamples", samples_file=str(file), **known)


def write_config(config: Config, path: Path) -> Path:
    """Write a config as plain Python, everything resolved."""
    lines = [f"{key} = {value!r}\n" for key, value in config.to_dict().items()]
    write_text(path, '"""Written by maskclip-bench; every value resolved."""\n\n' + "".join(lines))
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
    except OSError as error:  # of mmengine's writes: checkpoints, logs
        if error.errno not in _DISK_REFUSES:
            raise
        sys.stderr.write(f"error: {storage_error(error, error.filename or given[0])}\n")
        return EXIT_STORAGE
    return 0


if __name__ == "__main__":
    sys.exit(main())
