"""Train and test a classifier as one job; a message says what, a folder keeps what came of it.

    python -m maskclip_bench.tasks.finetuning.job JOB.json
    torchrun --nproc_per_node=8 -m maskclip_bench.tasks.finetuning.job JOB.json

An interrupted job goes on from its last checkpoint; what is there is not done again. A model that
exists only in the memory of a process is trained there (`run_here`), with the same functions.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from maskclip_bench import distributed, storage
from maskclip_bench.backbones import Backbone, load_backbone, resolve_backbone
from maskclip_bench.data.class_table import same_classes
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import (
    EXIT_INTERRUPTED,
    CheckpointError,
    DataError,
    MaskCLIPBenchError,
)
from maskclip_bench.job_folder import write_progress
from maskclip_bench.jobs import JobCancelled, end_with_parent
from maskclip_bench.progress import Progress, no_progress, throttled
from maskclip_bench.runtime import Workspace, configure_threads
from maskclip_bench.tasks.finetuning.classifier import (
    Classifier,
    interpolated,
    load_trained_state,
    trained_state,
)
from maskclip_bench.tasks.finetuning.folder import (
    TrainJob,
    open_split,
    read_tensors,
    read_train_job,
)
from maskclip_bench.tasks.finetuning.scoring import (
    ScoredSplit,
    read_result,
    result_of,
    scores_of,
    transform_at_test,
    write_result,
)
from maskclip_bench.tasks.finetuning.training import TrainRun, trained_classifier
from maskclip_bench.tasks.metrics import Integers
from maskclip_bench.training.interruption import STOP_SIGNALS, RunStopped

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5


def open_tested(job: TrainJob, train: Dataset, workspace: Workspace) -> list[ScoredSplit]:
    """The splits that a message names, each with the classes that may be answered.

    Raises:
        DataError: A split's classes are not those that are learnt.
    """
    tested = []
    for split in job.tests:
        dataset = open_split(split, workspace)
        if split.task["name"] == job.train.task["name"]:
            same_classes(train, dataset)
        elif len(dataset.class_names) != len(train.class_names):
            raise DataError(
                f"{dataset.name} ({dataset.split}) has {len(dataset.class_names)} classes and "
                f"{train.name} has {len(train.class_names)}: a classifier of the one cannot be "
                "tested on the other. Name a data set with the same classes by index."
            )
        classes: Integers = np.arange(len(train.class_names), dtype=np.int64)
        if split.present_only:
            classes = np.unique(dataset.need_labels())
        tested.append(ScoredSplit(split.key, dataset, classes, job.metric))
    return tested


def run_here(
    job: TrainJob,
    backbone: Backbone,
    workspace: Workspace,
    *,
    progress: Progress = no_progress,
    stop: Callable[[], bool] = lambda: False,
    watch_signals: bool = False,
) -> None:
    """Do what is left of a job in this process; the results are in its folder.

    Raises:
        MaskCLIPBenchError: See `trained_classifier`.
        RunStopped: A signal stopped it.
        JobCancelled: `stop` did.
    """
    train = open_split(job.train, workspace)
    train.need_labels()
    tested = open_tested(job, train, workspace)
    run = TrainRun(
        backbone=backbone,
        recipe=job.recipe,
        train=train,
        folder=job.folder,
        num_classes=len(train.class_names),
        seed=job.draws_seed,
        zero_shot=_zero_shot(job),
        progress=progress,
        stop=stop,
        stop_signals=STOP_SIGNALS if watch_signals else (),
    )
    if job.recipe.evaluate_every_epochs is not None:
        run = replace(run, evaluate=partial(_evaluate, run, tested[0]))
    classifier, first, _ = trained_classifier(run)
    last = {name: value.clone() for name, value in trained_state(classifier).items()}
    for alpha in [None, *job.alphas]:
        state = last if alpha is None else interpolated(first, last, alpha)
        load_trained_state(classifier, state)
        for split in tested:
            _test(run, classifier, split, alpha)


def _test(run: TrainRun, classifier: Classifier, split: ScoredSplit, alpha: float | None) -> None:
    """Test on a split unless its result is there; on all ranks."""
    identity = split.identity(alpha)
    there = distributed.on_main(
        lambda: "yes" if read_result(run.folder, identity) is not None else ""
    )
    if there:
        return
    scores = _scores(run, classifier, split)
    if scores is not None:
        write_result(run.folder, identity, result_of(scores, split))
    distributed.barrier()


def _evaluate(run: TrainRun, split: ScoredSplit, classifier: Classifier, step: int) -> None:
    """Test during training, and keep who was right."""
    scores = _scores(run, classifier, split)
    if scores is not None:
        outcomes = result_of(scores, split).outcomes[["sample_id", "top1_accuracy"]]
        with storage.atomic_file(run.folder.evaluation(step)) as temporary:
            outcomes.to_parquet(temporary)


def _scores(run: TrainRun, classifier: Classifier, split: ScoredSplit) -> torch.Tensor | None:
    return scores_of(
        classifier,
        split.dataset,
        transform_at_test(run.recipe, run.backbone.transform),
        run.folder,
        device=run.backbone.device,
        progress=run.progress,
    )


def _zero_shot(job: TrainJob) -> torch.Tensor | None:
    """First weights of the head, where the recipe wants them.

    Raises:
        CheckpointError: Their file is damaged.
    """
    if job.recipe.head != "zero_shot":
        return None
    path = job.folder.zero_shot
    found = read_tensors(path, path.with_suffix(".sha256").read_text(encoding="utf-8"))
    if found is None:
        raise CheckpointError(f"{path} is damaged. Delete its folder and run again.")
    return found["weight"]


def run_job_file(path: Path) -> None:
    """Do what is left of the job in a message file.

    Raises:
        MaskCLIPBenchError: See `run_here`; or the row's weights are not those of the message.
    """
    job = read_train_job(path)
    workspace = Workspace.open()
    device = torch.device(job.device)
    if device.type == "cuda" and distributed.world_size() > 1:
        device = torch.device("cuda", distributed.local_rank())
    backbone = load_backbone(
        resolve_backbone(job.row), workspace=workspace, seed=job.seed, device=device
    )
    if backbone.weights_fingerprint != job.weights:
        raise CheckpointError(
            f"The weights of {backbone.row_id} changed after the run began. Run again."
        )
    progress: Progress = no_progress
    if distributed.is_main():
        progress = throttled(partial(write_progress, job.folder.progress), seconds=PROGRESS_SECONDS)
    run_here(job, backbone, workspace, progress=progress, watch_signals=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The job's command line -> exit code."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    end_with_parent()
    configure_threads()
    job = read_train_job(Path(path))
    try:
        with distributed.process_group(torch.device(job.device)):
            run_job_file(Path(path))
    except MaskCLIPBenchError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except (RunStopped, JobCancelled, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
