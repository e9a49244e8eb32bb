"""What a protocol is: settings, a context to run in, and a measurement that comes out."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from maskclip_bench import storage
from maskclip_bench.config import Declaration, decisive, validate
from maskclip_bench.data.class_table import same_classes
from maskclip_bench.data.dataset import shared_images
from maskclip_bench.data.left_over import examples
from maskclip_bench.data.readers import open_dataset
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

    from maskclip_bench.backbones.declaration import BackboneDeclaration
    from maskclip_bench.backbones.loading import Backbone
    from maskclip_bench.backbones.unloaded import UnloadedBackbone
    from maskclip_bench.data.readers import Dataset
    from maskclip_bench.results.measurement import Measurement
    from maskclip_bench.runtime import Workspace
    from maskclip_bench.tasks.declaration import TaskDeclaration
    from maskclip_bench.tasks.features import FeatureStore


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProtocolContext:
    """Everything a protocol may use to measure one cell. Made by `tasks.measure` only.

    Attributes:
        task: Declaration of the data set.
        settings: The protocol's settings on it (`Protocol.settings_of(task)`).
        backbone: The loaded model.
        features: Store that gives the features of a split, computed at most once.
        workspace: Where files are; jobs work below `workspace.jobs`.
        device: Where to compute.
        progress: Told (stage, done, total) of anything long.
        seed: For what the protocol itself draws (splits, shots); the row's seed is the backbone's.
        num_threads: Threads one job may use.
        cancel: Set when the run is interrupted; jobs pass it to `jobs.run_job`.
        limit: Images of each split to use, evenly spaced over it; None = all.
        validate: Whether protocols that train for long also validate meanwhile; no score depends
            on it.
        shared_maps: File by which jobs of one row may hand on what they computed; no score depends
            on it. None where no other job would use it.
    """

    task: TaskDeclaration
    settings: Any
    backbone: Backbone
    features: FeatureStore
    workspace: Workspace
    device: torch.device
    progress: Progress = no_progress
    seed: int = 0
    num_threads: int = 1
    cancel: threading.Event = field(default_factory=threading.Event)
    limit: int | None = None
    validate: bool = False
    shared_maps: Path | None = None
    _opened: dict[str, Dataset] = field(default_factory=dict, repr=False)

    def dataset(self, split: str, *, together: int = 1) -> Dataset:
        """One of the data set's splits ("train", "validation", "test"), opened once.

        All splits that are opened have the same classes at the same indices.

        Args:
            split: Ours.
            together: Images that make an example; a limit keeps or leaves out all of them.

        Raises:
            ConfigError: The data set declares no such split.
            DataError: Its files are missing or broken, its classes are not those of a split
                opened before, or its images are all those of the training split.
        """
        if split not in self._opened:
            dataset = open_split(self.task, split, self.workspace)
            if len(dataset) == 0:
                raise DataError(
                    f"{dataset.name} ({dataset.split}) has no image, so there is nothing to "
                    "measure. Check the split's folder, and `splits` in its declaration."
                )
            if self.limit is not None:
                number = len(dataset) // together
                chosen = evenly_spaced(number, max(self.limit // together, 1))
                spread = [together * first + i for first in chosen for i in range(together)]
                dataset = dataset.take(spread)
            self._opened[split] = dataset
            self._check_classes()
            self._check_unseen()
        return self._opened[split]

    def left_over(self) -> dict[str, Any]:
        """Split -> what its folder holds beyond it, of the splits opened so far; for records."""
        return {
            split: dataset.left_over.to_json()
            for split, dataset in sorted(self._opened.items())
            if dataset.left_over
        }

    def _check_classes(self) -> None:
        """All splits opened so far have one class table; `train` is what others are learnt from."""
        opened = [dataset for dataset in self._opened.values() if dataset.classes is not None]
        opened.sort(key=lambda dataset: dataset is not self._opened.get("train"))
        if len(opened) > 1:
            same_classes(*opened)

    def _check_unseen(self) -> None:
        """Of what is tested nothing was learnt, as far as the files say.

        Raises:
            DataError: All images of the test split are images of the training split.
        """
        train, test = (self._opened.get(split) for split in ("train", "test"))
        if train is None or test is None:
            return
        shared = shared_images(train, test)
        if not shared:
            return
        if len(shared) == len(test) and train.split != test.split:
            raise DataError(
                f"{test.name}: all images of {test.split!r} are images of {train.split!r}, so they "
                "would be learnt before they are tested. Is one folder a link to the other? "
                "Correct `splits`."
            )
        logger.warning(
            "%s: %d of %d images of %s are images of %s, too (%s); they are learnt before they are "
            "tested",
            test.name,
            len(shared),
            len(test),
            test.split,
            train.split,
            examples(shared),
        )


class Protocol(ABC):
    """A way to evaluate. One instance a protocol, in `maskclip_bench.tasks.PROTOCOLS`."""

    name: ClassVar[str]
    """As in "protocol/dataset"."""
    title: ClassVar[str]
    """What a table calls it; it is written into the records."""
    metric_labels: ClassVar[Mapping[str, str]] = {}
    """What a table calls its metrics, by name ("top1_accuracy": "top-1")."""
    table_columns: ClassVar[Sequence[str]] = ()
    """Metrics that each get a column of a table that nobody declared; empty = the primary one."""
    settings_model: ClassVar[type[Declaration]]
    """Keys that a data set may set for it."""
    runs_as_job: ClassVar[bool] = False
    """Whether it works in subprocesses, so that several may run side by side."""
    job_loads_backbone: ClassVar[bool] = False
    """Whether its jobs load the row themselves: `context.backbone` is an `UnloadedBackbone`, unless
    a caller had one in memory."""
    shares_training: ClassVar[bool] = False
    """Whether one training serves several tasks of a row, so that a second job would wait."""
    shares_maps: ClassVar[bool] = False
    """Whether its jobs can use each other's maps of a frozen backbone (`context.shared_maps`)."""
    expected_seconds: ClassVar[float] = 5.0
    """Rough time on the demo world; only weighs the pieces of a run against each other."""
    needs_text: ClassVar[bool] = False
    """Whether the backbone needs a text tower, whatever the settings."""

    @abstractmethod
    def run(self, context: ProtocolContext) -> Measurement:
        """Measure one cell.

        Raises:
            DataError: The data is missing or broken.
        """

    def texts(self, context: ProtocolContext) -> list[str]:
        """The texts that `run` will ask the text tower for, so that a suite encodes all at once.

        Raises:
            MaskCLIPBenchError: See `run`.
        """
        return []

    def settings_of(self, task: TaskDeclaration) -> Any:
        """The settings that `task` declares for this protocol, an instance of `settings_model`.

        Raises:
            ConfigError: They do not fit `settings_model`.
        """
        values = task.protocols.get(self.name, {})
        return validate(values, self.settings_model, where=f"{task.name}: protocols.{self.name}")

    def needs_text_tower(self, task: TaskDeclaration) -> bool:
        """Whether the settings that `task` declares need a backbone with a text tower.

        Raises:
            ConfigError: The settings do not fit `settings_model`.
        """
        return self.needs_text

    def left_out(self, task: TaskDeclaration, backbone: BackboneDeclaration) -> str | None:
        """Why this protocol cannot measure the backbone on the task here, or None.

        Asked before anything is loaded: a backbone of a kind without a text tower, an optional
        dependency that is not installed.

        Raises:
            ConfigError: The settings do not fit `settings_model`.
        """
        if backbone.has_text is False and self.needs_text_tower(task):
            return f"{backbone.display_name} has no text tower, which {self.title} needs"
        return None

    def missing_packages(self) -> list[str]:
        """Optional packages that it needs and that are not installed."""
        return []

    def missing_in(
        self, backbone: Backbone | UnloadedBackbone, task: TaskDeclaration
    ) -> str | None:
        """Why this protocol cannot measure a loaded backbone on the task, or None.

        Raises:
            ConfigError: The settings do not fit `settings_model`.
        """
        if not backbone.has_text and self.needs_text_tower(task):
            name = backbone.declaration.display_name
            return f"{name} has no text tower, which {self.title} needs"
        return None

    def preset_version(self, task: TaskDeclaration) -> int:
        """Version of the preset that `task` uses; a change of it measures the cell again."""
        return 1

    def data_fingerprint(self, task: TaskDeclaration, workspace: Workspace) -> str:
        """Hash of the data the number depends on: all splits of the task.

        Raises:
            DataError: The data is missing or broken.
        """
        return storage.fingerprint(
            {split: open_split(task, split, workspace).fingerprint for split in sorted(task.splits)}
        )

    def task_fingerprints(self, task: TaskDeclaration, workspace: Workspace) -> dict[str, str]:
        """Hashes of what a number depends on besides the backbone, by part.

        Raises:
            ConfigError: The settings do not fit.
            DataError: The data is missing or broken.
        """
        from maskclip_bench.tasks.protocols.prompts import class_names_content, prompts_content

        settings = self.settings_of(task)
        versions = {"preset": self.preset_version(task), "task": task.task_version}
        return {
            "data": self.data_fingerprint(task, workspace),
            "settings": storage.fingerprint(
                {"protocol": self.name, "settings": decisive(settings)}
            ),
            "class_names": storage.fingerprint(class_names_content(task)),
            "prompts": storage.fingerprint(
                prompts_content(task, getattr(settings, "prompts", None))
            ),
            "versions": storage.fingerprint(versions),
        }

    def cell_fingerprints(
        self, task: TaskDeclaration, backbone: BackboneDeclaration, workspace: Workspace
    ) -> dict[str, str]:
        """`task_fingerprints`, and a hash of what the row changes of the recipe, where it may.

        Raises:
            ConfigError: The settings do not fit.
            DataError: The data is missing or broken.
        """
        return self.task_fingerprints(task, workspace)


def cell_fingerprint(parts: dict[str, str]) -> str:
    """The hash of a cell from the hashes of its parts: weights, preprocessing, data, settings."""
    return storage.fingerprint(parts)


def open_split(task: TaskDeclaration, split: str, workspace: Workspace) -> Dataset:
    """Open one of a data set's splits ("train", "validation", "test").

    Raises:
        ConfigError: The data set declares no such split.
        DataError: Its files are missing or broken.
    """
    return open_dataset(
        task.reader,
        split_name(task, split),
        workspace.data,
        what=task.name,
        splits=declared_splits(task),
    )


def declared_splits(task: TaskDeclaration) -> list[str]:
    """The data set's own names of all its splits, that of `train` first."""
    ours = sorted(task.splits, key=lambda name: name != "train")
    return [task.splits[name] for name in ours]


def split_name(task: TaskDeclaration, split: str) -> str:
    """The data set's own name of one of our splits.

    Raises:
        ConfigError: The data set declares no such split.
    """
    names: dict[str, str] = {ours: theirs for ours, theirs in task.splits.items()}
    if split not in names:
        raise ConfigError(
            f"{task.name} has no split {split!r}; it declares {', '.join(names)}. "
            f"Add it to `splits` in tasks/{task.name}.yaml, or drop the protocol that needs it."
        )
    return names[split]


def evenly_spaced(num: int, at_most: int) -> list[int]:
    """Indices below `num`, `at_most` of them, from the whole range.

    Example:
        >>> evenly_spaced(5, 3)
        [0, 1, 3]
    """
    count = min(num, at_most)
    return [index * num // count for index in range(count)]
