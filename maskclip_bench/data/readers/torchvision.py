"""Data sets that torchvision has a class for; never downloaded."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from maskclip_bench.data.dataset import Dataset, IndexedImages, fingerprint_of
from maskclip_bench.data.directory_walk import list_files
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.errors import ConfigError, DataError, did_you_mean


class TorchvisionSet(ReaderDeclaration):
    """A data set of torchvision."""

    kind: Literal["torchvision"] = "torchvision"
    dataset: str
    """Name of torchvision's class, e.g. `CIFAR10`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of that class."""
    train_per_class: int | None = None
    """For sets without official splits: that many random images a class are `train`, the rest is
    `test`; drawn once and for all from the class and the file order."""

    def missing(self, split: str, root: Path) -> str | None:
        """The folder, or anything in it."""
        missing = super().missing(split, root)
        if missing is None and not any(root.iterdir()):
            return f"the folder {root} is empty"
        return missing

    def open(self, split: str, root: Path, *, what: str) -> Dataset:
        """Open a split; see the base class."""
        import torchvision

        name = self.dataset
        known = {
            key
            for key, value in vars(torchvision.datasets).items()
            if inspect.isclass(value) and issubclass(value, torchvision.datasets.VisionDataset)
        }
        if name not in known:
            raise ConfigError(f"torchvision has no data set {name!r}.{did_you_mean(name, known)}")
        kind = getattr(torchvision.datasets, name)
        try:
            images = kind(str(root), **_torchvision_arguments(kind, self, split))
        except (RuntimeError, OSError, ValueError) as error:
            raise DataError(
                f"{what}: torchvision cannot open {name} in {root}: {' '.join(str(error).split())}"
            ) from error
        labels = _torchvision_labels(images)
        chosen: NDArray[np.int64] = np.arange(len(labels), dtype=np.int64)
        if self.train_per_class is not None:
            chosen = _split_per_class(labels, self.train_per_class, split)
        labels = labels[chosen]
        ids = [f"{index:06d}" for index in chosen]
        class_names = _torchvision_classes(images, int(labels.max(initial=-1)) + 1)
        return Dataset(
            name=what,
            split=split,
            sample_ids=ids,
            groups=list(ids),
            fingerprint=fingerprint_of(
                (
                    *((path.as_posix(), size) for path, size in list_files(root)),
                    (name, split, sorted(self.options.items())),
                    (ids, labels.tolist()),
                ),
                class_names,
            ),
            read=IndexedImages(images, chosen.tolist(), f"{what} ({name})"),
            labels=labels,
            class_names=class_names,
        )


def _torchvision_arguments(kind: type[Any], reader: TorchvisionSet, split: str) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters
    arguments = dict(reader.options)
    if "split" in parameters:
        arguments["split"] = split
    elif "train" in parameters:
        arguments["train"] = split == "train"
    elif "image_set" in parameters:
        arguments["image_set"] = split
    if "download" in parameters:
        arguments["download"] = False
    return arguments


def _torchvision_labels(images: Any) -> NDArray[np.int64]:
    for attribute in ("targets", "_labels", "labels", "y"):
        labels = getattr(images, attribute, None)
        if labels is not None and len(labels) == len(images):
            return np.asarray(labels, dtype=np.int64)
    samples = getattr(images, "_samples", None)
    if isinstance(samples, list) and samples and len(samples[0]) == 2:
        return np.array([label for _, label in samples], dtype=np.int64)
    return np.array([images[index][1] for index in range(len(images))], dtype=np.int64)


def _torchvision_classes(images: Any, num_classes: int) -> list[str]:
    for attribute in ("classes", "categories"):
        names = getattr(images, attribute, None)
        if names is not None and len(names) >= num_classes:
            return [name if isinstance(name, str) else str(name[0]) for name in names]
    return [str(index) for index in range(num_classes)]


def _split_per_class(labels: NDArray[np.int64], per_class: int, split: str) -> NDArray[np.int64]:
    """Indices of the `train` part (so many a class, in a fixed random order) or of the rest."""
    train: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        train += np.random.default_rng(int(label)).permutation(members)[:per_class].tolist()
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[train] = True
    return np.flatnonzero(chosen if split == "train" else ~chosen)
