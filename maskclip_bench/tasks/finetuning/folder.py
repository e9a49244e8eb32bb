"""The work folder of a training through the backbone: its files, and the message that starts it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from maskclip_bench import storage
from maskclip_bench.config import Declaration, validate
from maskclip_bench.data.readers import open_dataset
from maskclip_bench.errors import DataError
from maskclip_bench.job_folder import JobFolder, read_message
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.finetuning.recipe import TrainRecipe
from maskclip_bench.tasks.protocols.classification import ClassificationMetric

if TYPE_CHECKING:
    from maskclip_bench.data.dataset import Dataset
    from maskclip_bench.tasks.finetuning.classifier import State


class JobSplit(Declaration):
    """A split that the trained classifier is tested on."""

    key: str = ""
    """Suffix of its metrics; empty for the test split itself."""
    task: dict[str, Any]
    """The data set's declaration."""
    split: str
    """The data set's own name of the split."""
    splits: list[str] = Field(default_factory=list)
    """All splits of the data set whose classes make one table, that of training first."""
    present_only: bool = False
    """Whether the classifier answers among the classes that occur in the split."""


class TrainJob(Declaration):
    """What a job does: train a classifier on one split, then test it on others."""

    work_dir: str
    row: str
    """File of the row's declaration."""
    seed: int
    """Of the row's pretraining."""
    weights: str
    """Fingerprint of the row's weights, which must be those that the job loads."""
    recipe: TrainRecipe
    draws_seed: int = 0
    """Of what the training draws."""
    train: JobSplit
    tests: list[JobSplit] = Field(min_length=1)
    alphas: list[float] = Field(default_factory=list)
    """Weights between the first and the trained ones that are tested, too."""
    metric: ClassificationMetric = "top1_accuracy"
    device: str = "cpu"

    @property
    def folder(self) -> TrainFolder:
        """Where the job works."""
        return TrainFolder(Path(self.work_dir))


def read_train_job(path: Path) -> TrainJob:
    """Read a message.

    Raises:
        DataError: The file is missing or no message.
    """
    return read_message(path, TrainJob)


class TrainFolder(JobFolder):
    """Names of the files in a work folder."""

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of a training under way."""
        return self.path / "checkpoints"

    @property
    def zero_shot(self) -> Path:
        """First weights of a zero-shot head."""
        return self.path / "zero_shot.safetensors"

    @property
    def trained(self) -> Path:
        """What training changed, once it is over."""
        return self.path / "trained.safetensors"

    @property
    def report(self) -> Path:
        """Steps, rates, numbers of parameters; the SHA-256 of `trained`."""
        return self.path / "train_report.json"

    def evaluation(self, step: int) -> Path:
        """Outcomes of a test during training."""
        return self.path / f"evaluation_{step:08d}.parquet"

    def result(self, identity: str) -> Path:
        """Metrics on a split, `.json`; the outcomes are beside it, `.parquet`."""
        return self.path / f"result_{identity}.json"


def open_split(split: JobSplit, workspace: Workspace) -> Dataset:
    """A split of a message.

    Raises:
        ConfigError: The declaration is none.
        DataError: Its files are missing or broken, or it has no image.
    """
    task = validate(split.task, TaskDeclaration, where="the job's data set")
    dataset = open_dataset(
        task.reader, split.split, workspace.data, what=task.name, splits=split.splits
    )
    if len(dataset) == 0:
        raise DataError(
            f"{dataset.name} ({dataset.split}) has no image, so there is nothing to learn or to "
            "measure. Check the split's folder, and `splits` in its declaration."
        )
    return dataset


def write_tensors(path: Path, state: State) -> str:
    """Write tensors -> the SHA-256 of the file."""
    with storage.atomic_file(path) as temporary:
        save_file({name: value.contiguous().cpu() for name, value in state.items()}, str(temporary))
        return storage.sha256_file(temporary)


def read_tensors(path: Path, sha256: str) -> State | None:
    """Tensors of a file, or None if it is not there or not what was written."""
    try:
        if storage.sha256_file(path) != sha256:
            return None
        return load_file(str(path))
    except (OSError, SafetensorError):
        return None


def read_report(folder: TrainFolder) -> dict[str, Any]:
    """The report of a finished training; empty without one."""
    return storage.read_object(folder.report) or {}
