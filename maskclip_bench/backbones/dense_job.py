"""The contract of a dense job: the message that starts it, and the folder it works in.

`tasks/dense_jobs.py` writes the message and reads the results; the job itself
(`backbones/openmmlab/dense_cell.py`) runs as a subprocess, reads the message and writes the
results. Both import this module, which needs neither torch nor OpenMMLab.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, model_validator

from maskclip_bench.config import Declaration
from maskclip_bench.job_folder import JobFolder, read_message


class DenseSplit(Declaration):
    """One split of the data set: the samples that its reader lists, and no others."""

    name: str
    """The data set's own name."""
    images: str
    """Folder of the images."""
    samples: list[tuple[str, str]] | None = None
    """Image and mask of each sample, in the reader's order (segmentation)."""
    annotations: str | None = None
    """COCO annotation file (detection)."""

    @model_validator(mode="after")
    def _one_kind(self) -> DenseSplit:
        if (self.samples is None) == (self.annotations is None):
            raise ValueError(f"the split {self.name!r} has either samples or annotations")
        return self


class DenseJob(Declaration):
    """What a job does: train on one split, then test on others."""

    toolbox: Literal["mmseg", "mmdet"]
    config: str
    """Path of the config."""
    work_dir: str
    backbone: dict[str, Any]
    """Arguments of the config's backbone that say where its weights come from."""
    train: DenseSplit
    tests: list[DenseSplit] = Field(min_length=1)
    validate_on: DenseSplit | None = None
    """Split to validate on while training, as often as the config says; None = no validation. The
    last checkpoint is tested all the same."""
    classes: list[str] | None = None
    """Names in the order of the labels; None = the config's."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the config -> values laid over it."""
    maps: str | None = None
    """File that takes the maps of a frozen backbone on to other jobs of the row on the same images;
    None = there are none."""

    @property
    def folder(self) -> DenseFolder:
        """Where the job works."""
        return DenseFolder(Path(self.work_dir))

    def write(self) -> Path:
        """Write the message into the work folder -> its path."""
        return self.folder.write(self)


def read_job(path: Path) -> DenseJob:
    """Read a message.

    Raises:
        DataError: The file is missing or no message.
    """
    return read_message(path, DenseJob)


class DenseFolder(JobFolder):
    """Names of the files in a job's work folder."""

    @property
    def report(self) -> Path:
        """Kernels, number of processes and of parameters."""
        return self.path / "run_report.json"

    @property
    def trained(self) -> Path:
        """Exists once training is over; names the checkpoint."""
        return self.path / "trained.json"

    @property
    def loaded_row(self) -> Path:
        """What loading the row said: normalization, hash of its tensors, its transform."""
        return self.path / "row.json"

    @property
    def training_config(self) -> Path:
        """The config to train with, every value resolved."""
        return self.path / "config_train.py"

    def test_config(self, split: str) -> Path:
        """The config to test a split with, every value resolved."""
        return self.path / f"config_{_file_part(split)}.py"

    def samples(self, split: str) -> Path:
        """The images and masks of a split."""
        return self.path / f"samples_{_file_part(split)}.json"

    def annotations(self, split: str) -> Path:
        """A COCO file of the split with the categories in the order of the labels."""
        return self.path / f"annotations_{_file_part(split)}.json"

    def scores(self, split: str) -> Path:
        """The toolbox's scores on a split."""
        return self.path / f"scores_{_file_part(split)}.json"

    def outcomes(self, split: str) -> Path:
        """The per-image outcomes on a split."""
        return self.path / f"outcomes_{_file_part(split)}.npz"

    def pictures(self, split: str) -> Path:
        """List of the pictures of a split: `{"pictures": [{"file", "sample_id"}, ...], ...}`."""
        return self.path / f"pictures_{_file_part(split)}.json"


def _file_part(split: str) -> str:
    """A split's name as part of a file name; plain names stay as they are."""
    return quote(split, safe=" ,+=@()")
