"""The doctor of data sets: what is wrong with the files of a task, before a number is made of them.

Looked at: images of each split against the published number, classes and their words, files that
cannot be read, images that occur twice (within a split, or in train and test), the layouts that are
mistaken most often (ImageNet's flat validation folder, COCO 2014 and 2017), values of masks, and
captions an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskclip_bench import content_hash
from maskclip_bench.data.class_table import IMAGENET_CLASSES
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.data.left_over import HIDDEN, examples
from maskclip_bench.data.readers import forget, root_of
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration, missing_data
from maskclip_bench.tasks.protocols.base import open_split
from maskclip_bench.tasks.protocols.prompts import class_names_of

Level = Literal["error", "warning", "note"]

IMAGENET_VAL = 50
"""Images of each class in ImageNet's validation split."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `error`: a number on it would be wrong, or none can be made. `warning`: it should be
            known. `note`: it is as it should be.
        split: Ours, or empty for the whole data set.
        text: What was found, and for an error what to do.
    """

    level: Level
    split: str
    text: str


@dataclass
class Diagnosis:
    """What the doctor says of a data set.

    Attributes:
        dataset: Its name.
        missing: What is not on this machine; then nothing was looked at.
        findings: In the order in which they were made.
    """

    dataset: str
    missing: str | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def num_errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.level == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def check_data(
    task: TaskDeclaration, workspace: Workspace, *, progress: Progress = no_progress
) -> Diagnosis:
    """Look at the files of a data set; reads all of them once (their hashes are remembered).

    Args:
        task: The data set.
        workspace: Where the data is.
        progress: Told (stage, done, total).
    """
    missing = missing_data(task, workspace)
    diagnosis = Diagnosis(task.name, missing)
    if missing is not None:
        diagnosis.findings += [
            Finding("error", "", text) for text in mistaken_layout(task, workspace)
        ]
        return diagnosis
    forget()
    opened: dict[str, Dataset] = {}
    for split in task.splits:
        try:
            opened[split] = open_split(task, split, workspace)
        except MaskCLIPBenchError as error:
            diagnosis.findings.append(Finding("error", split, str(error)))
    diagnosis.findings += [Finding("error", "", text) for text in mistaken_layout(task, workspace)]
    for name, dataset in opened.items():
        for look in (_count, _left_over, _unreadable, _classes, _imagenet_val, _masks, _captions):
            diagnosis.findings += [
                Finding(level, name, text) for level, text in look(task, name, dataset, progress)
            ]
    diagnosis.findings += list(_duplicates(opened, progress))
    diagnosis.findings += list(_words(task, opened))
    return diagnosis


Found = Iterator[tuple[Level, str]]
Look = Callable[[TaskDeclaration, str, Dataset, Progress], Found]


def _count(task: TaskDeclaration, split: str, dataset: Dataset, progress: Progress) -> Found:
    expected = task.counts.get(split)  # type: ignore[call-overload]
    if expected is None:
        yield "note", f"{len(dataset):,} images; no number is declared"
    elif expected == len(dataset):
        yield "note", f"{len(dataset):,} images, as published"
    else:
        yield (
            "error",
            f"{len(dataset):,} images, and {expected:,} are published: a number on these is "
            "another one. Download or unpack the split again.",
        )


def _left_over(task: TaskDeclaration, split: str, dataset: Dataset, progress: Progress) -> Found:
    sentence = dataset.left_over.sentence()
    if sentence:
        yield "warning", f"not part of the split: {sentence}"
    hidden = dataset.left_over.to_json().get(HIDDEN)
    if hidden is not None:
        yield "note", f"left out: {hidden['count']} {HIDDEN}, e.g. {', '.join(hidden['first'])}"


def _unreadable(task: TaskDeclaration, split: str, dataset: Dataset, progress: Progress) -> Found:
    try:
        dataset.check_images(progress)
    except MaskCLIPBenchError as error:
        yield "error", str(error)


def _classes(task: TaskDeclaration, split: str, dataset: Dataset, progress: Progress) -> Found:
    if dataset.labels is None or dataset.classes is None:
        return
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    empty = [dataset.classes.keys[index] for index in np.flatnonzero(counts == 0)]
    if empty and not task.class_names.present_only:
        yield (
            "warning",
            f"{len(empty)} of {len(counts)} classes have no image, e.g. {examples(empty)}",
        )
    if len(dataset.classes) == 1:
        yield "warning", "there is only one class, so every answer is right"
    full = counts[counts > 0]
    yield "note", f"{len(full)} classes, {full.min()} to {full.max()} images each"


def _imagenet_val(task: TaskDeclaration, split: str, dataset: Dataset, progress: Progress) -> Found:
    """ImageNet's validation split has 50 images of each class."""
    of_imagenet = dataset.classes is not None and dataset.classes.source == IMAGENET_CLASSES
    if not of_imagenet or task.counts.get("test") != 1000 * IMAGENET_VAL or split != "test":
        return
    counts = np.bincount(dataset.need_labels(), minlength=1000)
    wrong = np.flatnonzero(counts != IMAGENET_VAL)
    if len(wrong):
        yield (
            "error",
            f"{len(wrong)} classes have another number of images than {IMAGENET_VAL}, so images "
            "are in folders of other classes or missing. Sort the archive into folders again.",
        )


def _masks(task: TaskDeclaration, split: str, dataset: Dataset, progress: Progress) -> Found:
    if len(dataset.annotations) != len(dataset):  # no masks, or one file of boxes
        return
    names = task.class_names.names
    number = len(dataset.classes) if dataset.classes is not None else len(names)
    try:
        dataset.check_masks(number)
    except MaskCLIPBenchError as error:
        yield "error", str(error)
    else:
        yield "note", f"all values of the masks are 0 to {number} or 255"


def _captions(task: TaskDeclaration, split: str, dataset: Dataset, progress: Progress) -> Found:
    if dataset.captions is None:
        return
    numbers = Counter(map(len, dataset.captions))
    told = ", ".join(f"{count:,} images with {number}" for number, count in sorted(numbers.items()))
    total = sum(map(len, dataset.captions))
    few = task.captions_per_image
    if few is not None and min(numbers) < few:
        yield "error", f"captions: {told}; each should have {few}. Download the list again."
    else:
        yield "note", f"{total:,} captions: {told}"
    repeated = sum(count - 1 for count in Counter(t for c in dataset.captions for t in c).values())
    if repeated:
        yield "warning", f"{repeated:,} captions are repeated; retrieval counts them as ties"


def _duplicates(opened: dict[str, Dataset], progress: Progress) -> Iterator[Finding]:
    """Images of the same bytes, within a split and between two."""
    hashes: dict[str, dict[str, str]] = {}
    for split, dataset in opened.items():
        if not dataset.image_paths:
            yield Finding(
                "note", split, "not looked for images that occur twice: no files of their own"
            )
            continue

        def told(done: int, total: int, split: str = split) -> None:
            progress(f"hashing {split}, MB", done >> 20, max(total >> 20, 1))

        try:
            found = content_hash.file_hashes(dataset.image_paths, told)
        except MaskCLIPBenchError:
            continue  # a file that cannot be read is reported as such
        names = dict(zip(dataset.sample_ids, found, strict=True))
        hashes[split] = names
        again = [name for name, count in Counter(found).items() if count > 1]
        if again:
            same = [name for name, digest in names.items() if digest == again[0]]
            yield Finding(
                "warning", split, f"{len(again)} images occur twice or more, e.g. {examples(same)}"
            )
    splits = list(hashes)
    for first, second in ((a, b) for i, a in enumerate(splits) for b in splits[i + 1 :]):
        shared = set(hashes[first].values()) & set(hashes[second].values())
        if shared:
            both = [name for name, digest in hashes[second].items() if digest in shared]
            yield Finding(
                "warning",
                second,
                f"{len(both)} images are also in {first}, e.g. {examples(both)}: what learns on "
                "one has seen them",
            )


def _words(task: TaskDeclaration, opened: dict[str, Dataset]) -> Iterator[Finding]:
    """Whether the words of the classes are as many as the classes, and in their order."""
    if "zero_shot_classification" not in task.protocols:
        return
    dataset = opened.get("test")
    if dataset is None or dataset.labels is None or dataset.classes is None:
        return
    try:
        names = class_names_of(task, dataset)
    except MaskCLIPBenchError as error:
        yield Finding("error", "", str(error))
        return
    moved = misplaced(dataset.classes.keys, [words[0] for words in names])
    if moved:
        index, better = moved[0]
        yield Finding(
            "error",
            "",
            f"{len(moved)} classes have the words of another one, e.g. the class "
            f"{dataset.classes.keys[index]!r} (label {index}) is called {names[index][0]!r}, and "
            f"label {better} is called {names[better][0]!r}. Correct `class_names`, or rename the "
            "folders.",
        )


def misplaced(keys: tuple[str, ...], words: list[str]) -> list[tuple[int, int]]:
    """Classes whose key equals the words of another class, and not its own.

    Example:
        >>> misplaced(("cat", "big_dog"), ["Big dog", "cat"])
        [(0, 1), (1, 0)]
    """
    plain = [_plain(word) for word in words]
    place = {word: index for index, word in enumerate(plain)}
    return [
        (index, place[_plain(key)])
        for index, key in enumerate(keys)
        if index < len(plain) and _plain(key) in place and plain[index] != _plain(key)
    ]


def _plain(word: str) -> str:
    return "".join(c for c in word.lower() if c.isalnum())


def mistaken_layout(task: TaskDeclaration, workspace: Workspace) -> list[str]:
    """The mistakes that are made most often, in words; looks at names only."""
    root = root_of(task.reader, workspace.data)
    found = []
    classes = getattr(task.reader, "classes", None)
    if classes == IMAGENET_CLASSES:
        for split in task.splits.values():
            flat = _first_file(root / split, "ILSVRC2012_val_*")
            if flat is not None:
                found.append(
                    f"{root / split} holds the validation images side by side ({flat}, ...), as "
                    "the archive has them. Sort them into a folder a class (valprep.sh of "
                    "soumith/imagenetloader.torch, or the development kit's ground truth)."
                )
    if task.reader.kind == "karpathy" and (root / "val2017").is_dir():
        found.append(
            f"{root} holds COCO 2017 (val2017). Karpathy's splits are of the 2014 archives: their "
            "test images are in val2014, and many are in train2017. Unpack val2014 there."
        )
    if task.reader.kind == "coco_instances" and (root / "val2014").is_dir():
        missing = [name for name in task.splits.values() if not (root / name).is_dir()]
        if missing:
            found.append(
                f"{root} holds COCO 2014 (val2014), and this task is COCO 2017's. Download "
                f"{', '.join(missing)} and annotations_trainval2017."
            )
    return found


def _first_file(folder: Path, pattern: str) -> str | None:
    """Name of a file right in a folder."""
    if not folder.is_dir():
        return None
    return next((path.name for path in folder.glob(pattern) if path.is_file()), None)
