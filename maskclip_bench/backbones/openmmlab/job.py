"""A dense cell of the benchmark as one job: fill a config, train (or go on), test on each split.

    python -m maskclip_bench.backbones.openmmlab.job JOB.json
    torchrun --nproc_per_node=8 -m maskclip_bench.backbones.openmmlab.job JOB.json

A config's `global_batch_size` is divided among the processes.

The protocols `segmentation` and `detection` write the job file and run this as a subprocess. The
training and the testing themselves are the toolbox's own scripts (see `launch`), on a config that
is written out in full into the work folder, so that a run can be repeated by hand.

The work folder afterwards: `config_train.py`, `config_{split}.py`, mmengine's checkpoints and
logs, `trained.json` once training is over, and per split `scores_{split}.json` (as the toolbox
printed them) and `outcomes_{split}.npz`. What is there is not done again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from maskclip_bench.backbones.openmmlab.launch import launch
from maskclip_bench.errors import CheckpointError, ConfigError, DataError, MaskCLIPBenchError
from maskclip_bench.jobs import end_with_parent
from maskclip_bench.storage import write_json, write_text

SOURCE_KEYS = (
    "backbone",
    "checkpoint",
    "timm",
    "open_clip",
    "pretrained",
    "weights",
    "seed",
    "model_args",
)
"""Arguments of a backbone that say where its weights come from: the job replaces all of them."""

TRAINED = "trained.json"
LAST_CHECKPOINT = "last_checkpoint"


def run(job: dict[str, Any]) -> None:
    """Do what is left of a job.

    Args:
        job: `toolbox`; `config`, a path; `work_dir`; `backbone`, the arguments of its source;
            `data_root`; `train`, a split; `tests`, splits; `options`, dotted keys of the config.
            A split is `{"name", "images", "masks"}` or `{"name", "images", "annotations"}`, paths
            below the data root.

    Raises:
        MaskCLIPBenchError: See `launch`.
    """
    folder = Path(job["work_dir"])
    trained = folder / TRAINED
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    launcher = ["--launcher", "pytorch"] if world_size > 1 else []
    if not trained.is_file():
        config = fill(job, split=job["tests"][0])
        config.train_cfg.val_interval = 10**9  # the tests below are this job's validation
        if "global_batch_size" in config:
            config.train_dataloader.batch_size = max(1, config.global_batch_size // world_size)
        path = write_config(config, folder / "config_train.py")
        arguments = ["--work-dir", str(folder), *launcher]
        if (folder / LAST_CHECKPOINT).is_file():
            arguments.append("--resume")
        launch(job["toolbox"], "train", str(path), arguments)
        write_json(trained, {"checkpoint": _last_checkpoint(folder).name})
    for split in job["tests"]:
        scores = scores_file(folder, split["name"])
        if scores.is_file():
            continue
        path = write_config(fill(job, split=split), folder / f"config_{split['name']}.py")
        checkpoint = str(_last_checkpoint(folder))
        arguments = [checkpoint, "--work-dir", str(folder), *launcher]
        launch(job["toolbox"], "test", str(path), arguments)


def scores_file(folder: Path, split: str) -> Path:
    """Where the toolbox's scores on a split go."""
    return folder / f"scores_{split}.json"


def outcomes_file(folder: Path, split: str) -> Path:
    """Where the per-image outcomes on a split go."""
    return folder / f"outcomes_{split}.npz"


def fill(job: dict[str, Any], *, split: dict[str, Any]) -> Config:
    """The job's config with its backbone, its data and `split` as what is tested.

    Raises:
        ConfigError: The config has no backbone of ours, or a data set of another kind.
    """
    config = Config.fromfile(job["config"])
    folder = Path(job["work_dir"])
    backbone = config.model.backbone
    for key in SOURCE_KEYS:
        backbone.pop(key, None)
    backbone.update(job["backbone"])
    _place_split(config.train_dataloader, job["data_root"], job["train"])
    for name in ("val_dataloader", "test_dataloader"):
        _place_split(config[name], job["data_root"], split)
    outcomes = {"file": str(outcomes_file(folder, split["name"]))}
    metric = "SegmentationOutcomes" if "masks" in split else "DetectionOutcomes"
    for name in ("val_evaluator", "test_evaluator"):
        evaluators = config[name] if isinstance(config[name], list) else [config[name]]
        for evaluator in evaluators:
            if "ann_file" in evaluator:
                evaluator.ann_file = str(Path(job["data_root"]) / split["annotations"])
        config[name] = [*evaluators, {"type": metric, **outcomes}]
    config.custom_hooks = [
        hook for hook in config.get("custom_hooks", []) if hook["type"] != "RunReport"
    ] + [
        {
            "type": "RunReport",
            "progress_file": str(folder / "progress.json"),
            "scores_file": str(scores_file(folder, split["name"])),
        }
    ]
    if job.get("options"):
        config.merge_from_dict(job["options"])
    return config


def _place_split(loader: Any, data_root: str, split: dict[str, Any]) -> None:
    """Point the innermost data sets of a loader to a split."""
    waiting = [loader.dataset]
    while waiting:
        dataset = waiting.pop()
        inner = dataset.get("dataset") or dataset.get("datasets")
        if inner:
            waiting += inner if isinstance(inner, (list, tuple)) else [inner]
            continue
        dataset.data_root = data_root
        if "masks" in split:
            if "split" in dataset:
                dataset.split = Path(split["images"]).name
            else:
                dataset.data_prefix = {
                    "img_path": split["images"],
                    "seg_map_path": split["masks"],
                }
        elif "ann_file" in dataset:
            dataset.ann_file = split["annotations"]
            dataset.data_prefix = {"img": split["images"].rstrip("/") + "/"}
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


def _last_checkpoint(folder: Path) -> Path:
    """The checkpoint mmengine wrote last.

    Raises:
        CheckpointError: There is none, or it was removed.
    """
    pointer = folder / LAST_CHECKPOINT
    path = Path(pointer.read_text().strip()) if pointer.is_file() else None
    if path is not None and not path.is_file():
        path = folder / path.name  # the work folder was moved
    if path is None or not path.is_file():
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
            raise ConfigError("Usage: python -m maskclip_bench.backbones.openmmlab.job JOB.json")
        try:
            job = json.loads(Path(given[0]).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise DataError(f"{given[0]} is no job file: {error}") from error
        run(job)
    except MaskCLIPBenchError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
