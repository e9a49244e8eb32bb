"""Data sets that torchvision has a class for; never downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from maskclip_bench.data.class_table import ClassTable, table_of_indices
from maskclip_bench.data.dataset import Dataset, IndexedImages
from maskclip_bench.data.directory_walk import walk_files
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.readers.random_split import split_per_class
from maskclip_bench.errors import ConfigError, DataError, did_you_mean


class TorchvisionSet(ReaderDeclaration):
    """A data set of torchvision."""

    kind: Literal["torchvision"] = "torchvision"
    dataset: str
    """Name of torchvision's class, e.g. `CIFAR10`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of that class."""
    train_per_class: PositiveInt | None = None
    """For sets without official splits: that many random images a class are `train`, the rest is
    `test`; drawn once and for all from the class and the file order."""

    def missing(self, split: str, root: Path) -> str | None:
        """The folder, or anything in it."""
        missing = super().missing(split, root)
        if missing is None and not any(root.iterdir()):
            return f"the folder {root} is empty"
        return missing

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable:
        """Torchvision's class list; where its splits have lists of their own, all of them."""
        opened = [self._images(split, root, what) for split in splits]
        largest = [int(labels_of(images).max(initial=-1)) for images in opened]
        lists = list(dict.fromkeys(map(class_names_of, opened, largest)))
        if not all(lists):
            return table_of_indices([max(largest)], source=f"torchvision's {self.dataset}")
        names = (
            lists[0] if len(lists) == 1 else tuple(sorted({n for names in lists for n in names}))
        )
        keys = names if len(set(names)) == len(names) else tuple(map(str, range(len(names))))
        return ClassTable(keys, names, source=f"torchvision's {self.dataset}")

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        assert classes is not None
        images = self._images(split, root, what)
        labels = labels_of(images)
        own = class_names_of(images, int(labels.max(initial=-1)))
        if own and own != classes.names and set(own) <= set(classes.keys):
            # torchvision numbered the classes of this split alone
            labels = np.array(classes.labels_of(own, what=what), dtype=np.int64)[labels]
        chosen: NDArray[np.int64] = np.arange(len(labels), dtype=np.int64)
        if self.train_per_class is not None:
            chosen = split_per_class(labels, self.train_per_class, split)
        ids = [f"{index:06d}" for index in chosen]
        listed = walk_files(root).files
        return Dataset(
            name=what,
            split=split,
            sample_ids=ids,
            groups=list(ids),
            read=IndexedImages(images, chosen.tolist(), f"{what} ({self.dataset})"),
            files=[file.path for file in listed],
            labels=labels[chosen],
            classes=classes,
            identity=[
                self.dataset,
                sorted((key, repr(value)) for key, value in self.options.items()),
                [file.name for file in listed],
            ],
        )

    def _images(self, split: str, root: Path, what: str) -> Any:
        """Torchvision's own object for a split.

        Raises:
            ConfigError: torchvision has no such data set, or refuses the options.
            DataError: It cannot open the files.
        """
        import torchvision

        known = {
            key
            for key, value in vars(torchvision.datasets).items()
            if inspect.isclass(value) and issubclass(value, torchvision.datasets.VisionDataset)
        }
        if self.dataset not in known:
            raise ConfigError(
                f"torchvision has no data set {self.dataset!r}.{did_you_mean(self.dataset, known)} "
                "See torchvision.datasets."
            )
        kind = getattr(torchvision.datasets, self.dataset)
        try:
            return kind(str(root), **_arguments(kind, self.options, split))
        except TypeError as error:
            raise ConfigError(
                f"{what}: torchvision's {self.dataset} does not take these options ({error}). "
                "Correct reader.options."
            ) from None
        except Exception as error:  # its readers raise what their libraries raise
            raise DataError(
                f"{what}: torchvision cannot open {self.dataset} in {root} "
                f"({type(error).__name__}): {' '.join(str(error).split())}"
            ) from error


def _arguments(kind: type[Any], options: dict[str, Any], split: str) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters
    arguments = dict(options)
    if "split" in parameters:
        arguments["split"] = split
    elif "train" in parameters:
        arguments["train"] = split == "train"
    elif "image_set" in parameters:
        arguments["image_set"] = split
    if "download" in parameters:
        arguments["download"] = False
    return arguments


def torchvision_arguments(reader: TorchvisionSet, split: str) -> dict[str, Any]:
    """What torchvision's class is made with for a split; nothing is downloaded with them."""
    import torchvision

    return _arguments(getattr(torchvision.datasets, reader.dataset), reader.options, split)


def labels_of(images: Any) -> NDArray[np.int64]:
    """The labels of a data set of torchvision, int64 [N]."""
    for attribute in ("targets", "_labels", "labels", "y"):
        labels = getattr(images, attribute, None)
        if labels is not None and len(labels) == len(images):
            return np.asarray(labels, dtype=np.int64)
    if type(images).__name__ == "PCAM":  # opens its file for every image
        name = images._FILES[images._split]["targets"][0]
        with images.h5py.File(images._base_folder / name) as file:
            return np.asarray(file["y"], dtype=np.int64).reshape(-1)
    samples = getattr(images, "_samples", None)
    if isinstance(samples, list) and samples and len(samples[0]) == 2:
        return np.array([label for _, label in samples], dtype=np.int64)
    return np.array([images[index][1] for index in range(len(images))], dtype=np.int64)


def class_names_of(images: Any, largest: int) -> tuple[str, ...]:
    """The class names of a data set of torchvision; empty if no list reaches the largest label."""
    for attribute in ("classes", "categories"):
        names = getattr(images, attribute, None)
        if names is not None and len(names) > largest:
            return tuple(name if isinstance(name, str) else str(name[0]) for name in names)
    return ()
