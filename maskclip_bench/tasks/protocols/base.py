"""What a protocol is: settings, a context to run in, and a measurement that comes out."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from maskclip_bench import storage
from maskclip_bench.config import Declaration, validate
from maskclip_bench.data.readers import open_dataset
from maskclip_bench.errors import ConfigError
from maskclip_bench.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

    from maskclip_bench.backbones.declaration import BackboneDeclaration
    from maskclip_bench.backbones.loading import Backbone
    from maskclip_bench.data.readers import Dataset
    from maskclip_bench.results.measurement import Measurement
    from maskclip_bench.runtime import Workspace
    from maskclip_bench.tasks.declaration import TaskDeclaration
    from maskclip_bench.tasks.features import FeatureStore


@dataclass(frozen=True)
class ProtocolContext:
    """Everything a protocol may use to measure one cell.

    Attributes:
        task: Declaration of the data set.
        settings: The protocol's settings on it (`Protocol.settings_of(task)`).
        backbone: The loaded model.
        features: Store that gives the features of a split, computed at most once.
        workspace: Where files lie; jobs work below `workspace.jobs`.
        device: Where to compute.
        progress: Told about anything long.
        seed: For what the protocol itself draws (splits, shots); the row's seed is the backbone's.
        num_threads: Threads one job may use.
        cancel: Set when the run is interrupted; jobs pass it to `jobs.run_job`.
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

    def dataset(self, split: str) -> Dataset:
        """Open one of the data set's splits ("train", "validation", "test").

        Raises:
            ConfigError: The data set declares no such split.
            DataError: Its files are missing or broken.
        """
        return open_split(self.task, split, self.workspace)


class Protocol(ABC):
    """A way to evaluate. One instance a protocol, in `maskclip_bench.tasks.PROTOCOLS`."""

    name: ClassVar[str]
    """As in "protocol/dataset"."""
    display_name: ClassVar[str]
    """What a table calls it."""
    settings_model: ClassVar[type[Declaration]]
    """Keys that a data set may set for it."""
    runs_as_job: ClassVar[bool] = False
    """Whether it works in subprocesses, so that several may run side by side."""
    expected_seconds: ClassVar[float] = 5.0
    """Rough time on the demo world; only weighs the pieces of a run against each other."""
    needs_text: ClassVar[bool] = False
    """Whether the backbone needs a text tower."""

    @abstractmethod
    def run(self, context: ProtocolContext) -> Measurement:
        """Measure one cell.

        Raises:
            DataError: The data is missing or broken.
        """

    def settings_of(self, task: TaskDeclaration) -> Any:
        """The settings that `task` declares for this protocol, an instance of `settings_model`.

        Raises:
            ConfigError: They do not fit `settings_model`.
        """
        values = task.protocols.get(self.name, {})
        return validate(values, self.settings_model, where=f"{task.name}: protocols.{self.name}")

    def left_out(self, task: TaskDeclaration, backbone: BackboneDeclaration) -> str | None:
        """Why this protocol cannot measure the backbone on the task here, or None.

        Checked before anything is loaded: a backbone of a kind without a text tower, an optional
        dependency that is not installed.
        """
        if self.needs_text and backbone.source.timm is not None:
            return f"{backbone.display_name} has no text tower, which {self.display_name} needs"
        return None

    def preset_version(self, task: TaskDeclaration) -> int:
        """Version of the preset that `task` uses; a change of it measures the cell anew."""
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
        """Hashes of what a number depends on besides the backbone: data, and settings.

        Raises:
            ConfigError: The settings do not fit.
            DataError: The data is missing or broken.
        """
        return {
            "data": self.data_fingerprint(task, workspace),
            "settings": storage.fingerprint(
                {
                    "protocol": self.name,
                    "settings": self.settings_of(task).model_dump(mode="json"),
                    "class_names": task.class_names.model_dump(mode="json"),
                    "prompt_sets": {k: v.model_dump() for k, v in task.prompt_sets.items()},
                    "preset_version": self.preset_version(task),
                    "task_version": task.task_version,
                }
            ),
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
    return open_dataset(task.reader, split_name(task, split), workspace.data, what=task.name)


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
