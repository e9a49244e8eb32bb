"""A column family of the table: one data set, and every protocol it is measured under.

One file a data set, `tasks/{name}.yaml`; a *task* is a protocol on it, `knn/cifar10`:

    display_name: CIFAR-10
    world: real
    reader: {kind: torchvision, root: cifar10, dataset: CIFAR10}
    splits: {train: train, test: test}
    protocols:
      zero_shot_classification: {prompts: cifar_18}
      knn: {}
"""

from __future__ import annotations

import logging
import re
from typing import Any, Literal
from urllib.parse import parse_qsl

from pydantic import Field, SerializeAsAny, model_validator

from maskclip_bench.config import Declaration, World, load_declaration, validate
from maskclip_bench.data.readers import ReaderDeclaration, missing_files
from maskclip_bench.data_files import declarations, find_declaration
from maskclip_bench.errors import ConfigError, unknown_name
from maskclip_bench.runtime import Workspace

logger = logging.getLogger(__name__)

KIND = "tasks"
LISTING = "maskclip-bench list tasks"


class PromptSet(Declaration):
    """Prompt templates of a zero-shot classifier, `{}` standing for the class name."""

    templates: list[str] | str
    """The templates, or `open_clip:NAME` for a list that open_clip ships."""
    version: int = 1
    """Raised when the set changes."""

    @model_validator(mode="after")
    def _have_a_place_for_the_name(self) -> PromptSet:
        if isinstance(self.templates, list):
            if not self.templates:
                raise ValueError("needs at least one template")
            for template in self.templates:
                if template.count("{}") != 1:
                    raise ValueError(f"{template!r} needs {{}} once, where the class name goes")
        return self


class ClassNames(Declaration):
    """Words for the classes of a data set, in index order."""

    names: list[str | list[str]] | str = "reader"
    """The words (a list of words is aliases of one class), `reader` for what the data set itself
    says, or `open_clip:IMAGENET_CLASSNAMES`."""
    replace: dict[str, str] = Field(default_factory=dict)
    """Replacements in the reader's own names, e.g. `{"_": " "}`."""
    lower: bool = False
    """Whether the reader's names are lower-cased."""
    present_only: bool = False
    """Restrict the classifier to the classes that occur in the test split (ImageNet-A and -R: 200
    of the 1,000), by index."""


class TaskDeclaration(Declaration):
    """One data set (`tasks/*.yaml`)."""

    name: str = ""
    """Name of the file; set when it is read."""
    display_name: str
    """What a table calls the column."""
    world: World
    """`demo` for the embedded data, `real` for all others."""
    reader: SerializeAsAny[ReaderDeclaration]
    """How its files are read."""
    splits: dict[Literal["train", "validation", "test"], str]
    """Our split -> the data set's own name for it."""
    counts: dict[Literal["train", "validation", "test"], int] = Field(default_factory=dict)
    """Images of each split as published; `maskclip-bench data check` compares."""
    captions_per_image: int | None = None
    """Fewest captions that an image has as published; `data check` compares."""
    class_names: ClassNames = ClassNames()
    """Words for the classes, for zero-shot classification."""
    prompt_sets: dict[str, PromptSet] = Field(default_factory=dict)
    """Prompt sets of this data set; those that many share are in `tasks.protocols.prompts`."""
    protocols: dict[str, dict[str, Any]]
    """Protocol -> its settings; the protocol says which keys it knows."""
    task_version: int = 1
    """Raised when a number on this data set changes its meaning."""
    hub: str | None = None
    """Data set of the Hugging Face hub, ORG/NAME, that `data prepare` fetches into the root."""
    obtain: str
    """How to get the data, for `maskclip-bench list tasks` and for errors."""
    notes: str = ""
    """What a reader of the number should know (split quirks, label noise)."""

    @model_validator(mode="after")
    def _has_a_protocol(self) -> TaskDeclaration:
        if not self.protocols:
            raise ValueError("'protocols' is empty: name at least one")
        return self

    @model_validator(mode="after")
    def _counts_its_own_splits(self) -> TaskDeclaration:
        other = sorted(set(self.counts) - set(self.splits))
        if other:
            raise ValueError(f"'counts' has {', '.join(other)}, which 'splits' does not have")
        return self


def dataset_names() -> list[str]:
    """All declared data sets, sorted."""
    return list(declarations(KIND))


def task_names() -> list[str]:
    """All tasks as "protocol/dataset", in the order data set, protocol.

    A data set whose file is broken is left out, with a warning.
    """
    names: list[str] = []
    for dataset in dataset_names():
        try:
            protocols = load_task_declaration(dataset).protocols
        except ConfigError as error:
            logger.warning("Left out: %s", error)
        else:
            names += [f"{protocol}/{dataset}" for protocol in protocols]
    return names


HUB_PREFIX = "hf:"


def load_task_declaration(name: str) -> TaskDeclaration:
    """Read the declaration of one data set, by name or by the path of its file.

    `hf:ORG/NAME` is any data set of the Hugging Face hub; see `hub_declaration`.

    Raises:
        UnknownNameError: There is none of that name.
        ConfigError: Its file is wrong.
    """
    if name.startswith(HUB_PREFIX):
        return hub_declaration(name)
    path = find_declaration(KIND, name, singular="data set", listing=LISTING)
    return load_declaration(path, TaskDeclaration).model_copy(update={"name": path.stem})


HUB_OPTIONS = ("config", "image", "label", "captions")
"""Keys of the reader that the name of a data set of the hub may set."""

HUB_PROTOCOLS: dict[str, dict[str, Any]] = {
    "zero_shot_classification": {"prompts": "a_photo_of"},
    "linear_probe": {},
    "knn": {},
    "few_shot": {},
}


def hub_name(name: str) -> str:
    """The name, fit for a file, of a data set of the hub: `hf:ORG/NAME` is `hf-ORG--NAME`."""
    repository, mark, query = name.removeprefix(HUB_PREFIX).partition("?")
    options = re.sub(r"[^\w.-]+", "-", query)
    return f"hf-{repository.replace('/', '--')}" + (f"-{options}" if mark else "")


def hub_declaration(name: str) -> TaskDeclaration:
    """A data set of the Hugging Face hub, or in its formats below `hf/` of the data root.

    `hf:ORG/NAME` finds the columns by their types; `hf:ORG/NAME?image=photo&label=kind` names them,
    `&captions=text` for retrieval, `&config=en` for data sets of several configurations, and
    `&train=...`, `&validation=...`, `&test=...` the splits (default: train and test).

    Raises:
        ConfigError: It is no ORG/NAME, or has an option that there is not.
    """
    repository, _, query = name.removeprefix(HUB_PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    splits = {key: options.pop(key) for key in ("train", "validation", "test") if key in options}
    splits = splits or {"train": "train", "test": "test"}
    unknown = sorted(set(options) - set(HUB_OPTIONS))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or unknown or "test" not in splits:
        problem = f"has no option {unknown[0]!r}" if unknown else "names no data set of the hub"
        raise ConfigError(
            f"{name!r} {problem}. Write hf:ORG/NAME, or hf:ORG/NAME?image=COLUMN&label=COLUMN; "
            f"options: {', '.join(HUB_OPTIONS)}, train, validation, test."
        )
    folder = "hf/" + repository.replace("/", "--")
    values = {
        "name": hub_name(name),
        "display_name": repository,
        "world": "real",
        "reader": {"kind": "huggingface", "root": folder, **options},
        "splits": splits,
        "class_names": {"replace": {"_": " "}},
        "prompt_sets": {"a_photo_of": {"templates": ["a photo of a {}."]}},
        "protocols": {"retrieval": {}} if "captions" in options else HUB_PROTOCOLS,
        "hub": repository,
        "obtain": f"maskclip-bench data prepare {HUB_PREFIX}{repository}",
    }
    return validate(values, TaskDeclaration, where=name)


def load_task(name: str) -> tuple[str, TaskDeclaration]:
    """Read a task, "protocol/dataset" -> (protocol, declaration of the data set).

    Raises:
        UnknownNameError: No such data set, or it is not measured under that protocol.
        ConfigError: The declaration is wrong.
    """
    protocol, slash, dataset = name.partition("/")
    if not slash or not dataset:
        raise unknown_name("task", name, task_names(), remedy=f"List them with: {LISTING}")
    task = load_task_declaration(dataset)
    if protocol not in task.protocols:
        known = [f"{other}/{task.name}" for other in task.protocols]
        raise unknown_name("task", name, known, remedy=f"List them with: {LISTING}")
    return protocol, task


def missing_data(task: TaskDeclaration, workspace: Workspace) -> str | None:
    """What is missing of a data set's files and how to get it; None if all splits are here."""
    missing = missing_files(task.reader, list(task.splits.values()), workspace.data)
    return None if missing is None else f"{missing}. {task.obtain}"


def data_available(task: TaskDeclaration, workspace: Workspace) -> bool:
    """Whether the files of all its splits are on this machine."""
    return missing_data(task, workspace) is None
