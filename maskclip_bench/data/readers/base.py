"""What a reader is: a declaration of one kind that opens the splits of a data set."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import PydanticCustomError

from maskclip_bench.config import Declaration
from maskclip_bench.data.class_table import ClassTable
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.errors import DataError, UnknownNameError, did_you_mean
from maskclip_bench.registry import Registry

_FOLDER = "maskclip_bench.data.readers"


class ReaderDeclaration(Declaration):
    """How the files of a data set are read (`reader:` in `tasks/*.yaml`).

    `kind` chooses the subclass, whose fields are the only ones allowed. A subclass gives `kind` a
    literal type and a default, and defines `open`, `class_table` where its data has classes, and
    `needed_paths` where it can.
    """

    kind: str
    root: str
    """Folder of the data set; relative paths start at the data root."""

    def __new__(cls, *args: Any, **values: Any) -> ReaderDeclaration:
        """Make a reader of the kind that `values` name."""
        if cls is ReaderDeclaration and isinstance(values.get("kind"), str):
            cls = READERS.get_known(values["kind"])
        return super().__new__(cls)

    @model_validator(mode="wrap")
    @classmethod
    def _by_kind(
        cls, values: Any, handler: ModelWrapValidatorHandler[ReaderDeclaration]
    ) -> ReaderDeclaration:
        """Validate as the subclass of `kind`; a key of another kind is named as such."""
        if isinstance(values, ReaderDeclaration) or not isinstance(values, dict):
            return handler(values)
        if cls is ReaderDeclaration:
            return _subclass(values).model_validate(values)
        _refuse_other_keys(cls, values)
        return handler(values)

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """Files and folders without which the split cannot be read; looks at no content.

        Args:
            split: The data set's own name of the split.
            root: Folder of the data set.
        """
        return [root]

    def missing(self, split: str, root: Path) -> str | None:
        """What is missing of a split, in words, or None; looks at no content.

        Args:
            split: The data set's own name of the split.
            root: Folder of the data set.
        """
        for path in self.needed_paths(split, root):
            if not path.exists():
                return f"no {'file' if path.suffix else 'folder'} {path}"
        return None

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable | None:
        """The classes of the data set, from its own list or from all splits together.

        Args:
            splits: All declared splits, the training split first; their own names.
            root: Folder of the data set.
            what: Name of the data set, for messages.

        Returns:
            The table, or None for data without classes.

        Raises:
            DataError: The splits have no table in common, or a class list is broken.
        """
        return None

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split.

        Args:
            split: The data set's own name of the split.
            root: Folder of the data set.
            classes: What `class_table` gave; labels are positions in it.
            what: Name of the data set, for messages.

        Raises:
            DataError: The files are not what the reader expects.
            ConfigError: The declaration does not fit the files.
        """
        raise NotImplementedError


READERS: Registry[type[ReaderDeclaration]] = Registry(
    "kind of reader",
    "maskclip_bench.readers",
    {
        "image_folder": f"{_FOLDER}.image_folder:ImageFolder",
        "torchvision": f"{_FOLDER}.torchvision:TorchvisionSet",
        "webdataset": f"{_FOLDER}.webdataset:WebDataset",
        "karpathy": f"{_FOLDER}.karpathy:Karpathy",
        "ade20k": f"{_FOLDER}.ade20k:ADE20K",
        "coco_instances": f"{_FOLDER}.coco_instances:COCOInstances",
        "voc": f"{_FOLDER}.voc:VOC",
        "cub": f"{_FOLDER}.cub:CUB",
        "objectnet": f"{_FOLDER}.objectnet:ObjectNet",
        "winoground": f"{_FOLDER}.winoground:Winoground",
        "sugar_crepe": f"{_FOLDER}.sugar_crepe:SugarCrepe",
        "table": f"{_FOLDER}.table:Table",
        "huggingface": f"{_FOLDER}.huggingface:HuggingFaceSet",
    },
    remedy="They are described in: docs/extending.md",
)
"""Kind -> the declaration class that reads it."""


def _subclass(values: dict[str, Any]) -> type[ReaderDeclaration]:
    kind = values.get("kind")
    if kind is None:
        raise PydanticCustomError(
            "reader_kind",
            "'kind' is missing. Set it to one of: {known}",
            {"known": ", ".join(READERS.names())},
        )
    try:
        return READERS.get_known(str(kind))
    except UnknownNameError as error:
        raise PydanticCustomError("reader_kind", "{text}", {"text": str(error)}) from None


def _refuse_other_keys(cls: type[ReaderDeclaration], values: dict[str, Any]) -> None:
    """Name the keys that another kind has, or the one that was probably meant."""
    known = cls.model_fields
    problems = []
    for key in values:
        if key in known:
            continue
        kind = known["kind"].default
        owners = [name for name in READERS if name != kind and key in READERS[name].model_fields]
        hint = f" It is a key of {' and '.join(owners)}." if owners else did_you_mean(key, known)
        problems.append(f"a reader of kind {kind} has no key {key!r}.{hint}")
    if problems:
        text = f"{' '.join(problems)} Its keys: {', '.join(known)}."
        raise PydanticCustomError("reader_key", "{text}", {"text": text})


def open_dataset(
    reader: ReaderDeclaration,
    split: str,
    data_root: Path,
    *,
    what: str = "The data set",
    splits: Sequence[str] = (),
) -> Dataset:
    """Open a split; the listing is kept for the life of the process (see `forget`).

    Args:
        reader: How to read it.
        split: The data set's own name of the split.
        data_root: Where relative roots start.
        what: Name of the data set, for messages.
        splits: All splits that are used together, the training split first. Labels mean the same
            in all of them. Without it, `split` is the only one.

    Raises:
        DataError: Files are missing, or are not what the reader expects.
        ConfigError: The declaration does not fit the files.
    """
    together = tuple(dict.fromkeys([*splits, split]))
    root = root_of(reader, data_root)
    with _LOCK:  # two threads would list the same folder, and warn twice
        return _open(_Opened(reader.model_dump_json(), str(root), what, together), split)


class _Opened(NamedTuple):
    """What a listing depends on besides the split."""

    reader: str
    root: str
    what: str
    splits: tuple[str, ...]


_LOCK = threading.RLock()


@lru_cache(maxsize=64)
def _open(key: _Opened, split: str) -> Dataset:
    reader, root = ReaderDeclaration.model_validate(json.loads(key.reader)), Path(key.root)
    for name in (split, *key.splits):
        missing = reader.missing(name, root)
        if missing is not None:
            raise DataError(f"{key.what}: {missing}. See `obtain` in: maskclip-bench list tasks")
    dataset = reader.open(split, root, classes=_class_table(key), what=key.what)
    if len(dataset) == 0:
        raise DataError(
            f"{key.what}: the split {split!r} in {root} has no image.{_instead(dataset)} Unpack it "
            "again."
        )
    dataset.warn_of_left_over()
    return dataset


def _instead(dataset: Dataset) -> str:
    """What an empty split has in place of images."""
    sentence = dataset.left_over.sentence()
    return f" It has {sentence}." if sentence else ""


@lru_cache(maxsize=64)
def _class_table(key: _Opened) -> ClassTable | None:
    reader = ReaderDeclaration.model_validate(json.loads(key.reader))
    return reader.class_table(key.splits, Path(key.root), what=key.what)


def forget() -> None:
    """Forget all listings, so that files changed since are seen."""
    _open.cache_clear()
    _class_table.cache_clear()


def root_of(reader: ReaderDeclaration, data_root: Path) -> Path:
    """The folder of a data set."""
    return data_root / Path(reader.root).expanduser()


def missing_files(reader: ReaderDeclaration, splits: Sequence[str], data_root: Path) -> str | None:
    """What is missing of the splits, in words, or None. Looks at folders, not at their content."""
    root = root_of(reader, data_root)
    for split in splits:
        missing = reader.missing(split, root)
        if missing is not None:
            return missing
    return None
