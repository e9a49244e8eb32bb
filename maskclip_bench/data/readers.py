"""Evaluation data sets, read where they lie: images with labels, captions, masks or boxes.

| kind | layout below `root` | gives |
| --- | --- | --- |
| image_folder | `{split}/{class}/**/*.jpg`, a class list beside it | labels |
| torchvision | what torchvision's class of that name expects (never downloaded) | labels |
| webdataset | CLIP-benchmark's `{split}/*.tar`: `key.jpg` with `key.cls` or `key.txt` | either |
| karpathy | one JSON of splits and sentences (Flickr30K, COCO), a folder of images | captions |
| ade20k | `images/{split}/*.jpg`, `annotations/{split}/*.png` | masks |
| coco_instances | `{split}/*.jpg`, `annotations/instances_{split}.json` | boxes |

Every sample has an id, and a group: samples of one group were not drawn independently (crops of one
drawing, captions of one image), and a bootstrap resamples groups. Every split has a fingerprint
over file names, sizes, labels and captions. Nothing is downloaded and nothing is decoded before it
is asked for.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from maskclip_bench.config import Declaration
from maskclip_bench.errors import ConfigError, DataError, did_you_mean

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})

READER_VERSION = 1
"""Part of every fingerprint; raised when a reader changes what it returns for the same files."""

IMAGENET_CLASSES = "imagenet-1k"
"""Value of `classes` for ImageNet's 1,000 WordNet ids in their usual order (timm ships them)."""

FOLDER_IS_INDEX = "index"
"""Value of `classes` for folders named 0, 1, 2... (ImageNet-V2)."""


class Groups(Declaration):
    """Which samples belong together: from a sidecar file, or from the file's name."""

    file: str | None = None
    """Sidecar below the root, `{split}` in it replaced: a JSON mapping path -> group, or a JSON
    list, CSV or Parquet with the columns `path` and `group`. Paths start at the split's folder."""
    field: str | None = None
    """Key of the group where the JSON maps a path to an object."""
    pattern: str | None = None
    """Regular expression searched in the path; its part named `group` is the group."""


class ReaderDeclaration(Declaration):
    """How the files of a data set are read (`reader:` in `tasks/*.yaml`)."""

    kind: Literal[
        "image_folder", "torchvision", "webdataset", "karpathy", "ade20k", "coco_instances"
    ]
    root: str
    """Folder of the data set; relative paths start at the data root."""
    classes: str | None = None
    """image_folder: file with the classes in index order (JSON list of names or of objects with
    `wnid` and `name`; or text, one `folder name` a line), `imagenet-1k`, or `index`. Without it the
    folders, sorted. ade20k: the same for the mask values from 1 on."""
    class_field: str = "name"
    """Key of the class's words, where the list holds objects."""
    groups: Groups = Groups()
    """Without it, each image is its own group."""
    file: str | None = None
    """karpathy: the JSON file below the root."""
    images: str = "images"
    """karpathy: folder of the images below the root."""
    dataset: str | None = None
    """torchvision: name of its class, e.g. `CIFAR10`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """torchvision: further keyword arguments of that class."""
    train_per_class: int | None = None
    """torchvision sets without official splits: so many random images a class are `train`, the rest
    is `test`; drawn once and for all from the class and the file order."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set; images are decoded when asked for.

    Attributes:
        name: Of the data set, for messages.
        split: The data set's own name of the split.
        sample_ids: Unique, one an image.
        groups: Group of each image.
        fingerprint: Hash of the file names, sizes, labels and captions.
        read: Index -> image; picklable, so that worker processes can use it.
        labels: int64 [N], or None.
        class_names: In index order; empty without labels.
        captions: One list of captions an image, or None.
        annotations: Mask of each image (ade20k), or the one JSON file (coco_instances).
    """

    name: str
    split: str
    sample_ids: list[str]
    groups: list[str]
    fingerprint: str
    read: Callable[[int], Image.Image]
    labels: NDArray[np.int64] | None = None
    class_names: list[str] = field(default_factory=list)
    captions: list[list[str]] | None = None
    annotations: list[Path] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def image(self, index: int) -> Image.Image:
        """One image as RGB.

        Raises:
            DataError: It cannot be read; names the file.
        """
        return self.read(index)

    def need_labels(self) -> NDArray[np.int64]:
        """The labels, int64 [N].

        Raises:
            ConfigError: The data set has none.
        """
        if self.labels is None:
            raise ConfigError(
                f"{self.name} ({self.split}) has no class labels, which this protocol needs. "
                "Use it under retrieval, or a reader of kind image_folder or torchvision."
            )
        return self.labels

    def need_captions(self) -> list[list[str]]:
        """The captions of each image.

        Raises:
            ConfigError: The data set has none.
        """
        if self.captions is None:
            raise ConfigError(
                f"{self.name} ({self.split}) has no captions, which retrieval needs. "
                "Use a reader of kind karpathy or webdataset."
            )
        return self.captions


def open_dataset(
    reader: ReaderDeclaration, split: str, data_root: Path, *, what: str = "The data set"
) -> Dataset:
    """Open a split; the listing is kept for the life of the process.

    Args:
        reader: How to read it.
        split: The data set's own name of the split.
        data_root: Where relative roots start.
        what: Name of the data set, for messages.

    Raises:
        DataError: Files are missing, or what lies there is not what the reader expects.
        ConfigError: The declaration lacks what its kind needs.
    """
    return _open(reader.model_dump_json(), split, str(root_of(reader, data_root)), what)


@lru_cache(maxsize=64)
def _open(reader_json: str, split: str, root: str, what: str) -> Dataset:
    reader = ReaderDeclaration.model_validate_json(reader_json)
    missing = _missing(reader, split, Path(root))
    if missing is not None:
        raise DataError(f"{what}: {missing}. See `obtain` in: maskclip-bench list tasks")
    dataset = _READERS[reader.kind](reader, split, Path(root), what)
    if len(dataset) == 0:
        raise DataError(f"{what}: the split {split!r} in {root} holds no image. Unpack it again.")
    return dataset


def root_of(reader: ReaderDeclaration, data_root: Path) -> Path:
    """The folder of a data set."""
    return data_root / Path(reader.root).expanduser()


def missing_files(reader: ReaderDeclaration, splits: Sequence[str], data_root: Path) -> str | None:
    """What is missing of the splits, in words, or None. Looks at folders, not at their content."""
    root = root_of(reader, data_root)
    for split in splits:
        missing = _missing(reader, split, root)
        if missing is not None:
            return missing
    return None


def _missing(reader: ReaderDeclaration, split: str, root: Path) -> str | None:
    for path in _needed_paths(reader, split, root):
        if not path.exists():
            return f"no {'file' if path.suffix else 'folder'} {path}"
    if reader.kind == "torchvision" and not any(root.iterdir()):
        return f"the folder {root} is empty"
    return None


def _needed_paths(reader: ReaderDeclaration, split: str, root: Path) -> list[Path]:
    if reader.kind in ("image_folder", "webdataset"):
        return [root, root / split]
    if reader.kind == "karpathy":
        return [root, root / _needed(reader, "file"), root / reader.images]
    if reader.kind == "ade20k":
        return [root, root / "images" / split, root / "annotations" / split]
    if reader.kind == "coco_instances":
        return [root, root / split, root / "annotations" / f"instances_{split}.json"]
    return [root]


def _needed(reader: ReaderDeclaration, key: str) -> str:
    value = getattr(reader, key)
    if value is None:
        raise ConfigError(f"A reader of kind {reader.kind} needs {key!r} (root: {reader.root}).")
    return str(value)


# --- image folders -------------------------------------------------------------------------------


def _image_folder(reader: ReaderDeclaration, split: str, root: Path, what: str) -> Dataset:
    folder = root / split
    files = list(_list_images(folder))
    present = sorted({file.parts[0] for file, _ in files if len(file.parts) > 1})
    index_of, class_names = _classes(reader, root, present)
    unknown = [name for name in present if name not in index_of]
    if unknown:
        raise DataError(
            f"{what}: {len(unknown)} folders in {folder} are no class of "
            f"{reader.classes}, e.g. {unknown[0]!r}.{did_you_mean(unknown[0], index_of)} "
            "Move them elsewhere, or correct the class list."
        )
    files = [(file, size) for file, size in files if len(file.parts) > 1]
    names = [file.as_posix() for file, _ in files]
    labels = np.array([index_of[file.parts[0]] for file, _ in files], dtype=np.int64)
    groups = _groups(reader.groups, names, root, split, what)
    return Dataset(
        name=what,
        split=split,
        sample_ids=names,
        groups=groups,
        fingerprint=_fingerprint(
            zip(names, (size for _, size in files), labels.tolist(), groups, strict=True),
            class_names,
        ),
        read=FileImages([folder / name for name in names]),
        labels=labels,
        class_names=class_names,
    )


def _list_images(folder: Path) -> Iterator[tuple[Path, int]]:
    """(path below `folder`, bytes) of all images, sorted by name, folder by folder."""

    def walk(current: str, prefix: str) -> Iterator[tuple[Path, int]]:
        with os.scandir(current) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(entry.path, f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                yield Path(prefix + entry.name), entry.stat().st_size

    return walk(str(folder), "")


def _classes(
    reader: ReaderDeclaration, root: Path, present: list[str]
) -> tuple[dict[str, int], list[str]]:
    """Folder name -> index, and names in index order."""
    if reader.classes is None:
        return {name: index for index, name in enumerate(present)}, present
    if reader.classes == FOLDER_IS_INDEX:
        if not all(name.isdecimal() for name in present):
            wrong = next(name for name in present if not name.isdecimal())
            raise DataError(f"{root}: the folder {wrong!r} is no class index (classes: index).")
        indices = {name: int(name) for name in present}
        return indices, [str(i) for i in range(max(indices.values(), default=-1) + 1)]
    if reader.classes == IMAGENET_CLASSES:
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo(IMAGENET_CLASSES)
        descriptions = [info.index_to_description(i) for i in range(info.num_classes())]
        return {synset: i for i, synset in enumerate(info.label_names())}, descriptions
    folders, names = read_class_list(root / reader.classes, field=reader.class_field)
    return {folder: i for i, folder in enumerate(folders)}, names


def read_class_list(path: Path, *, field: str = "name") -> tuple[list[str], list[str]]:
    """Read a class list -> (folder names, class names), in index order.

    Args:
        path: The file.
        field: Key of the class's words, where the list holds objects.

    Raises:
        DataError: The file is missing or is no class list.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
            return [line[0] for line in lines], [line[-1] for line in lines]
        entries = json.loads(text)
        if entries and isinstance(entries[0], str):
            return list(entries), list(entries)
        names = [str(entry[field]) for entry in entries]
        return [str(entry.get("wnid", entry["name"])) for entry in entries], names
    except FileNotFoundError:
        raise DataError(f"No class list {path}. Unpack the data set again.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no class list ({type(error).__name__}: {error}). It should be a JSON list "
            "of names or of objects with `wnid` and `name`, or text with one `folder name` a line."
        ) from None


def _groups(rule: Groups, names: list[str], root: Path, split: str, what: str) -> list[str]:
    if rule.file is not None:
        path = root / rule.file.format(split=split)
        table = _read_groups(path, rule.field)
        missing = [name for name in names if name not in table]
        if missing:
            raise DataError(
                f"{what}: {path} names no group for {len(missing)} of {len(names)} images, e.g. "
                f"{missing[0]}. It belongs to other images; make or unpack the data set again."
            )
        return [table[name] for name in names]
    if rule.pattern is not None:
        return [_match(rule.pattern, name, what) for name in names]
    return list(names)


def _match(pattern: str, name: str, what: str) -> str:
    match = re.search(pattern, name)
    if match is None:
        raise DataError(f"{what}: the group pattern {pattern!r} is not found in {name!r}.")
    return match.group("group") if "group" in match.groupdict() else match.group()


def _read_groups(path: Path, field: str | None) -> dict[str, str]:
    try:
        if path.suffix == ".parquet":
            import pandas as pd

            frame = pd.read_parquet(path, columns=["path", "group"])
            return dict(zip(frame["path"].astype(str), frame["group"].astype(str), strict=True))
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return {row["path"]: row["group"] for row in csv.DictReader(file)}
        table = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(table, dict):
            return {
                str(name): str(group[field] if field else group) for name, group in table.items()
            }
        return {str(row["path"]): str(row["group"]) for row in table}
    except FileNotFoundError:
        raise DataError(f"No file of groups {path}. Make or unpack the data set again.") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(
            f"{path} is no list of groups ({type(error).__name__}: {error}). It should map each "
            "image's path to its group."
        ) from None


# --- torchvision ---------------------------------------------------------------------------------


def _torchvision(reader: ReaderDeclaration, split: str, root: Path, what: str) -> Dataset:
    import torchvision

    name = _needed(reader, "dataset")
    known = {
        key
        for key, value in vars(torchvision.datasets).items()
        if inspect.isclass(value) and issubclass(value, torchvision.datasets.VisionDataset)
    }
    if name not in known:
        raise ConfigError(f"torchvision has no data set {name!r}.{did_you_mean(name, known)}")
    kind = getattr(torchvision.datasets, name)
    try:
        images = kind(str(root), **_torchvision_arguments(kind, reader, split))
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(
            f"{what}: torchvision cannot open {name} in {root}: {' '.join(str(error).split())}"
        ) from error
    labels = _torchvision_labels(images)
    chosen: NDArray[np.int64] = np.arange(len(labels), dtype=np.int64)
    if reader.train_per_class is not None:
        chosen = _split_per_class(labels, reader.train_per_class, split)
    labels = labels[chosen]
    ids = [f"{index:06d}" for index in chosen]
    class_names = _torchvision_classes(images, int(labels.max(initial=-1)) + 1)
    return Dataset(
        name=what,
        split=split,
        sample_ids=ids,
        groups=list(ids),
        fingerprint=_fingerprint(
            (
                *((path.as_posix(), size) for path, size in _list_files(root)),
                (name, split, sorted(reader.options.items())),
                (ids, labels.tolist()),
            ),
            class_names,
        ),
        read=IndexedImages(images, chosen.tolist(), f"{what} ({name})"),
        labels=labels,
        class_names=class_names,
    )


def _torchvision_arguments(
    kind: type[Any], reader: ReaderDeclaration, split: str
) -> dict[str, Any]:
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


def _list_files(root: Path) -> list[tuple[Path, int]]:
    return [
        (path.relative_to(root), path.stat().st_size)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]


# --- webdataset ----------------------------------------------------------------------------------


def _webdataset(reader: ReaderDeclaration, split: str, root: Path, what: str) -> Dataset:
    shards = sorted((root / split).rglob("*.tar"), key=lambda p: (len(p.name), p.as_posix()))
    ids: list[str] = []
    places: list[tuple[Path, int, int]] = []
    texts: list[dict[str, str]] = []
    for shard in shards:
        for key, place, text in _read_shard(shard):
            ids.append(f"{shard.relative_to(root / split).as_posix()}/{key}")
            places.append((shard, *place))
            texts.append(text)
    labelled = [text for text in texts if "cls" in text]
    labels = captions = None
    class_names: list[str] = []
    if texts and len(labelled) == len(texts):
        labels = np.array([int(text["cls"]) for text in texts], dtype=np.int64)
        class_names = _lines(root / "classnames.txt") or [str(i) for i in range(labels.max() + 1)]
    elif all("txt" in text for text in texts):
        captions = [[line for line in text["txt"].splitlines() if line.strip()] for text in texts]
    else:
        raise DataError(
            f"{what}: {len(texts) - len(labelled)} of {len(texts)} samples in {root / split} have "
            "neither a .cls (label) nor all a .txt (captions). Pack the data set again."
        )
    return Dataset(
        name=what,
        split=split,
        sample_ids=ids,
        groups=list(ids),
        fingerprint=_fingerprint(
            ((i, place[2], text) for i, place, text in zip(ids, places, texts, strict=True)),
            class_names,
        ),
        read=TarImages(places, ids),
        labels=labels,
        class_names=class_names,
        captions=captions,
    )


def _read_shard(shard: Path) -> Iterator[tuple[str, tuple[int, int], dict[str, str]]]:
    """(key, (offset, bytes) of its image, extension -> text of its small files)."""
    samples: dict[str, tuple[list[tuple[int, int]], dict[str, str]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, _, extension = member.name.rpartition("/")[2].partition(".")
                image, text = samples.setdefault(key, ([], {}))
                if f".{extension.lower()}" in IMAGE_SUFFIXES:
                    image.append((member.offset_data, member.size))
                elif extension in ("cls", "txt"):
                    content = tar.extractfile(member)
                    text[extension] = content.read().decode() if content else ""
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{shard} is broken ({error}). Copy or download it again.") from None
    for key, (image, text) in samples.items():
        if image:
            yield key, image[0], text


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


# --- captions, masks, boxes ----------------------------------------------------------------------


def _karpathy(reader: ReaderDeclaration, split: str, root: Path, what: str) -> Dataset:
    path = root / _needed(reader, "file")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
        chosen = [entry for entry in entries if entry["split"] == split]
        names = [
            "/".join(part for part in (entry.get("filepath", ""), entry["filename"]) if part)
            for entry in chosen
        ]
        captions = [
            [" ".join(sentence["raw"].split()) for sentence in entry["sentences"]]
            for entry in chosen
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no Karpathy split file ({type(error).__name__}: {error}). It should hold "
            '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}. Download it again.'
        ) from None
    if not chosen:
        known = sorted({str(entry["split"]) for entry in entries})
        raise DataError(f"{path} has no image of the split {split!r}; it has {', '.join(known)}.")
    bare = [name for name, texts in zip(names, captions, strict=True) if not any(texts)]
    if bare:
        raise DataError(f"{path}: {len(bare)} images have no caption, e.g. {bare[0]}.")
    return Dataset(
        name=what,
        split=split,
        sample_ids=names,
        groups=list(names),
        fingerprint=_fingerprint(
            (
                (name, _size(root / reader.images / name), texts)
                for name, texts in zip(names, captions, strict=True)
            ),
            [],
        ),
        read=FileImages([root / reader.images / name for name in names]),
        captions=captions,
    )


def _ade20k(reader: ReaderDeclaration, split: str, root: Path, what: str) -> Dataset:
    folder, masks = root / "images" / split, root / "annotations" / split
    files = list(_list_images(folder))
    names = [file.as_posix() for file, _ in files]
    annotations = [masks / Path(name).with_suffix(".png") for name in names]
    absent = [path for path in annotations if not path.is_file()]
    if absent:
        raise DataError(
            f"{what}: {len(absent)} of {len(names)} images in {folder} have no mask, e.g. "
            f"{absent[0]}. Unpack the annotations again."
        )
    class_names: list[str] = []
    if reader.classes:
        _, class_names = read_class_list(root / reader.classes, field=reader.class_field)
    return Dataset(
        name=what,
        split=split,
        sample_ids=names,
        groups=list(names),
        fingerprint=_fingerprint(
            (
                (name, size, _size(mask))
                for (name, (_, size), mask) in zip(names, files, annotations, strict=True)
            ),
            class_names,
        ),
        read=FileImages([folder / name for name in names]),
        class_names=class_names,
        annotations=annotations,
    )


def _coco_instances(reader: ReaderDeclaration, split: str, root: Path, what: str) -> Dataset:
    path = root / "annotations" / f"instances_{split}.json"
    try:
        content = path.read_bytes()
        loaded = json.loads(content)
        names = [str(image["file_name"]) for image in loaded["images"]]
        class_names = [str(entry["name"]) for entry in loaded["categories"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no COCO instance file ({type(error).__name__}: {error}). Unpack the "
            "annotations again."
        ) from None
    return Dataset(
        name=what,
        split=split,
        sample_ids=names,
        groups=list(names),
        fingerprint=_fingerprint(
            (
                hashlib.sha256(content).hexdigest(),
                *((name, _size(root / split / name)) for name in names),
            ),
            class_names,
        ),
        read=FileImages([root / split / name for name in names]),
        class_names=class_names,
        annotations=[path],
    )


def _size(path: Path) -> int:
    """Bytes of a file, -1 if it is not there (it is then reported when it is read)."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


_READERS: dict[str, Callable[[ReaderDeclaration, str, Path, str], Dataset]] = {
    "image_folder": _image_folder,
    "torchvision": _torchvision,
    "webdataset": _webdataset,
    "karpathy": _karpathy,
    "ade20k": _ade20k,
    "coco_instances": _coco_instances,
}


# --- reading one image ---------------------------------------------------------------------------


@dataclass(frozen=True)
class FileImages:
    """Images that are files."""

    paths: list[Path]

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        return _decode(lambda: Image.open(self.paths[index]), self.paths[index])


@dataclass(frozen=True)
class TarImages:
    """Images inside tar files, read at their offset."""

    places: list[tuple[Path, int, int]]
    names: list[str]

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        path, offset, size = self.places[index]

        def open_image() -> Image.Image:
            with path.open("rb") as file:
                file.seek(offset)
                return Image.open(io.BytesIO(file.read(size)))

        return _decode(open_image, f"{self.names[index]} in {path}")


@dataclass(frozen=True)
class IndexedImages:
    """Images of a data set with `[index]` -> (image, label)."""

    images: Any
    chosen: list[int]
    what: str

    def __call__(self, index: int) -> Image.Image:
        """Decode one image as RGB."""
        position = self.chosen[index]
        return _decode(lambda: self.images[position][0], f"image {position} of {self.what}")


def _decode(open_image: Callable[[], Image.Image], what: object) -> Image.Image:
    try:
        return open_image().convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"Cannot read {what} ({type(error).__name__}: {error}). It is missing or damaged; "
            "copy it again, or make or unpack the data set again."
        ) from None


def _fingerprint(rows: Any, class_names: list[str]) -> str:
    digest = hashlib.sha256(json.dumps([READER_VERSION, class_names]).encode())
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]
