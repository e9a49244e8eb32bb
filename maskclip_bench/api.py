"""The Python door: what the command line can do, on objects in memory.

    import maskclip_bench as mb

    encoder = mb.as_backbone(model, image_size=224, mean=(0.5,) * 3, std=(0.5,) * 3, name="mine")
    results = mb.evaluate(encoder, ["knn/cifar10", "linear_probe/cifar10"])
    results                                   # a table, as text and as HTML in a notebook
    mb.compare(results, "openai_vit-b-16")    # paired, from stored outcomes

Everything here is also a name of the package itself; `docs/python.md` is the guide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip_bench.errors import ConfigError, DataError, MaskCLIPBenchError
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from maskclip_bench.backbones import Backbone
    from maskclip_bench.tasks.cell import Column
    from maskclip_bench.tasks.declaration import TaskDeclaration

from maskclip_bench.api_bar import TaskBar
from maskclip_bench.api_embed import embed as embed
from maskclip_bench.api_results import Results
from maskclip_bench.api_tables import compare as compare
from maskclip_bench.api_tables import table as table

logger = logging.getLogger(__name__)

PathLike = str | Path
DataSets = Mapping[str, "PathLike | TaskDeclaration"]

FOLDER_PROTOCOLS = ("zero_shot_classification", "knn", "linear_probe", "few_shot")
"""Protocols of a data set made from a folder of images."""
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
"""Our split -> names of its folder, the first that exists is taken."""


# --- what there is -------------------------------------------------------------------------------


def list_backbones() -> list[str]:
    """Names of the declared rows (`backbones/*.yaml`)."""
    from maskclip_bench.backbones.declaration import backbone_names

    return backbone_names()


def list_tasks() -> list[str]:
    """All tasks, as `protocol/dataset`."""
    from maskclip_bench.tasks.declaration import task_names

    return task_names()


def list_suites() -> list[str]:
    """Names of the suites (`configs/suites/*.yaml`)."""
    from maskclip_bench.data_files import declarations

    return list(declarations("configs/suites"))


def list_recipes() -> list[str]:
    """Names of the pretraining recipes (`configs/pretrain/**/*.yaml`)."""
    from maskclip_bench.data_files import declarations

    return list(declarations("configs/pretrain"))


def list_tables() -> list[str]:
    """Names of the tables (`configs/tables/*.yaml`)."""
    from maskclip_bench.data_files import declarations

    return list(declarations("configs/tables"))


# --- models --------------------------------------------------------------------------------------


def as_backbone(module: Any, **options: Any) -> Backbone:
    """A model in memory as a backbone; see `maskclip_bench.backbones.as_backbone`.

    Args:
        module: A module or function, images [B, 3, S, S] -> [B, D]; or an object with
            `encode_image` and, if it reads texts, `encode_text`.
        **options: image_size, mean, std, encode_text, name, ...

    Raises:
        ConfigError: Something is missing that would have to be guessed.
    """
    from maskclip_bench.backbones import as_backbone as make

    return make(module, **options)


def load_backbone(
    name: PathLike,
    *,
    seed: int = 0,
    workspace: PathLike | None = None,
    device: str = "auto",
    precision: str = "float32",
) -> Backbone:
    """Load a model by what names it.

    Args:
        name: A declared row ("openai_vit-b-16"), "timm:NAME", "open_clip:ARCH/TAG", "hf:ORG/NAME",
            "python:MODULE:FACTORY", a folder of weights, or a YAML file of a row.
        seed: Which repetition of its pretraining, for rows made here.
        workspace: Folder with rows made here; default: `MASKCLIP_BENCH_WORKSPACE` or ./workspace.
        device: auto, cpu, cuda...
        precision: float32 or bfloat16, of the forward pass.

    Raises:
        UnknownNameError: Nothing has that name.
        CheckpointError: Its weights are missing or broken.
    """
    from maskclip_bench.backbones import load_backbone as load
    from maskclip_bench.backbones import resolve_backbone
    from maskclip_bench.runtime import resolve_device

    return load(
        resolve_backbone(str(name)),
        workspace=Workspace.open(workspace),
        seed=seed,
        device=resolve_device(device),
        precision=precision,  # type: ignore[arg-type]  # checked there
    )


# --- data ----------------------------------------------------------------------------------------


def image_folder(
    folder: PathLike,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] = ("a photo of a {}.",),
) -> TaskDeclaration:
    """Own images as a data set: `folder/{train,test}/{class}/*.jpg`, validation if it is there.

    Args:
        folder: The folder with a folder for each split.
        name: What tables call it; default: the folder's name.
        classes: Words for the classes in the order of the sorted class folders; default: the
            folders' names with spaces for "_".
        templates: Prompts of zero-shot classification, `{}` where the class goes.

    Raises:
        DataError: There is no test folder.
        ConfigError: A template has no `{}`.
    """
    from maskclip_bench.config import validate
    from maskclip_bench.tasks.declaration import TaskDeclaration

    root = Path(folder).expanduser().absolute()
    splits = {
        split: next((n for n in names if (root / n).is_dir()), None)
        for split, names in SPLIT_FOLDERS.items()
    }
    found = {split: folder_name for split, folder_name in splits.items() if folder_name}
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")  # as in ImageNet, what is called val is the test
    if "test" not in found:
        raise DataError(
            f"{root} has no folder test/ (or val/). Put the images into "
            f"{root.name}/test/CLASS/*.jpg, and for kNN, probes and few-shot also into "
            f"{root.name}/train/CLASS/*.jpg."
        )
    protocols = FOLDER_PROTOCOLS if "train" in found else FOLDER_PROTOCOLS[:1]
    settings: dict[str, dict[str, Any]] = {protocol: {} for protocol in protocols}
    settings["zero_shot_classification"] = {"prompts": "own"}
    values = {
        "name": name or root.name,
        "display_name": name or root.name,
        "world": "real",
        "reader": {"kind": "image_folder", "root": str(root)},
        "splits": found,
        "class_names": {"names": list(classes)} if classes else {"replace": {"_": " "}},
        "prompt_sets": {"own": {"templates": list(templates)}},
        "protocols": settings,
        "obtain": f"It is your own folder {root}.",
    }
    return validate(values, TaskDeclaration, where=f"image_folder({str(root)!r})")


# --- evaluation ----------------------------------------------------------------------------------


def evaluate(
    encoder: Backbone | str | Path,
    tasks: str | Iterable[str],
    *,
    data: PathLike | DataSets | None = None,
    limit: int | None = None,
    workspace: PathLike | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Results:
    """Measure a model on tasks; nothing is saved until `Results.save`.

    Args:
        encoder: From `as_backbone` or `load_backbone`, or what names a model (see there).
        tasks: "protocol/dataset", either part may be "*": "knn/*" leaves out, with a warning, the
            data sets that are not on this machine.
        data: Folder of all data sets, or {name: folder or `image_folder(...)`} of own ones, which
            tasks then name: `evaluate(encoder, "knn/birds", data={"birds": "~/birds"})`.
        limit: At most this many images of each split; such numbers are marked, and no table
            shows them beside full ones.
        workspace: Folder with data, weights and features; default as on the command line.
        device: Where a model that is named is loaded.
        seed: For what protocols draw (splits, shots).
        progress: Whether to show a bar.

    Returns:
        One record and the per-sample outcomes of each task, those that failed among them.

    Raises:
        UnknownNameError: A task, data set or model does not exist.
        MaskCLIPBenchError: No task at all could be measured; the first reason.
    """
    from maskclip_bench.backbones import Backbone
    from maskclip_bench.data.demo import prepare_demo
    from maskclip_bench.runtime import resolve_device
    from maskclip_bench.tasks.measure import measure_record

    if not isinstance(encoder, (Backbone, str, Path)):
        raise ConfigError(
            f"A {type(encoder).__name__} is no Backbone. Make one of it: "
            "maskclip_bench.as_backbone(model, image_size=..., mean=..., std=...)."
        )
    place = _workspace(workspace, data)
    backbone = (
        encoder.as_it_is()
        if isinstance(encoder, Backbone)
        else load_backbone(encoder, workspace=workspace, device=device)
    )
    own = {} if not isinstance(data, Mapping) else _own_data(data)
    patterns = _patterns(tasks)
    columns = _columns(patterns, own)
    named = {pattern for pattern in patterns if "*" not in pattern}
    target = resolve_device(device) if device != "auto" else backbone.device
    results = Results()
    with TaskBar(len(columns), shown=progress) as bar:
        wanted = []
        for column in columns:
            reason = _left_out(column, backbone, place)
            if reason is not None and column.name not in named:
                results.left_out[column.name] = reason
            else:
                wanted.append((column, reason))
        bar.total(len(wanted))
        fit = [column for column, reason in wanted if reason is None or column.on_demo_data]
        _encode_texts(fit, backbone, place, results, limit=limit, bar=bar)
        for column, reason in wanted:
            bar.next(column.name)
            try:
                if column.on_demo_data:
                    # One process: a script without a main guard cannot start others.
                    prepare_demo(place.data, progress=bar.advance, num_processes=1)
                elif reason is not None:
                    raise DataError(f"{backbone.name} x {column.name}: {reason}.")
                record, outcomes = measure_record(
                    column.protocol,
                    column.declaration,
                    backbone,
                    workspace=place,
                    features=results.features,
                    device=target,
                    progress=bar.advance,
                    seed=seed,
                    limit=limit,
                )
            except MaskCLIPBenchError as error:
                results.failures[column.name] = error
            else:
                results.add(record, outcomes)
    _say_what_is_missing(results)
    return results


def _encode_texts(
    columns: Sequence[Column],
    backbone: Backbone,
    place: Workspace,
    results: Results,
    *,
    limit: int | None,
    bar: TaskBar,
) -> None:
    """Encode the texts of all tasks at once, each distinct one once, shortest first.

    What is wrong with a task is said when it is measured.
    """
    from maskclip_bench.data.demo import prepare_demo
    from maskclip_bench.tasks.ahead import encode_texts_ahead

    if len(columns) < 2 or not backbone.has_text:
        return
    bar.next("texts of all tasks", counts=False)
    try:
        if any(column.on_demo_data for column in columns):
            prepare_demo(place.data, progress=bar.advance, num_processes=1)
        encode_texts_ahead(
            columns,
            backbone,
            workspace=place,
            features=results.features,
            limit=limit,
            progress=bar.advance,
        )
    except MaskCLIPBenchError:
        logger.debug("texts were not encoded at once", exc_info=True)


def _left_out(column: Column, backbone: Backbone, place: Workspace) -> str | None:
    """Why a task cannot be measured here, or None."""
    from maskclip_bench.tasks.declaration import missing_data

    unfit = column.protocol.missing_in(backbone, column.declaration)
    if unfit is not None:
        return unfit
    missing = missing_data(column.declaration, place)
    return None if missing is None else missing.rstrip(".")


def _say_what_is_missing(results: Results) -> None:
    """Raise if nothing was measured; else one warning for each kind of gap."""
    if not results.records:
        if results.failures:
            raise next(iter(results.failures.values()))
        first = next(iter(results.left_out.items()), ("", "no task fits"))
        raise DataError(
            f"None of the {len(results.left_out)} tasks can be measured here; the first, "
            f"{first[0]}: {first[1]}."
        )
    for task, error in results.failures.items():
        logger.warning("%s was not measured: %s", task, error)
    if results.left_out:
        logger.warning(
            "%d tasks were left out, because their data is not on this machine or the model does "
            "not fit them; `left_out` of the results says why.",
            len(results.left_out),
        )


def _workspace(workspace: PathLike | None, data: PathLike | DataSets | None) -> Workspace:
    place = Workspace.open(workspace)
    if data is None or isinstance(data, Mapping):
        return place
    if not isinstance(data, (str, Path)):
        raise ConfigError(
            f"data={data!r} is no folder. Give the folder of all data sets, or {{name: folder}} of "
            "your own."
        )
    return Workspace(root=place.root, data=Path(data).expanduser().absolute())


def _patterns(tasks: object) -> list[str]:
    patterns = [tasks] if isinstance(tasks, str) else tasks
    listed = list(patterns) if isinstance(patterns, Iterable) else [patterns]
    names = [name for name in listed if isinstance(name, str)]
    if len(names) < len(listed):
        raise ConfigError(
            f"tasks={tasks!r} names no task. Give a name such as 'knn/cifar10' or a list of them; "
            "maskclip_bench.list_tasks() has all."
        )
    return names


def _own_data(data: DataSets) -> dict[str, TaskDeclaration]:
    from maskclip_bench.tasks.declaration import TaskDeclaration

    for name, value in data.items():
        if not isinstance(name, str) or not isinstance(value, (str, Path, TaskDeclaration)):
            raise ConfigError(
                f"data={{{name!r}: {value!r}}}: a data set of your own is a name with its folder, "
                "or with maskclip_bench.image_folder(...)."
            )
    return {
        name: value.model_copy(update={"name": name})
        if isinstance(value, TaskDeclaration)
        else image_folder(value, name=name)
        for name, value in data.items()
    }


def _columns(patterns: Sequence[str], own: Mapping[str, TaskDeclaration]) -> list[Column]:
    """The tasks that patterns name, those on own data sets among them, each once."""
    from maskclip_bench.tasks.plan import columns_of

    if not patterns:
        raise ConfigError(
            "No task was given. Name some, e.g. 'knn/cifar10'; maskclip_bench.list_tasks() has all."
        )
    return columns_of(patterns, own=own)


# --- pretraining ---------------------------------------------------------------------------------


def pretrain(
    recipe: PathLike,
    *,
    output: PathLike | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    workspace: PathLike | None = None,
    device: str = "auto",
    progress: Callable[[Any], None] | None = None,
) -> Path:
    """Pretrain by a recipe; the same call goes on where an interrupted one stopped.

    Args:
        recipe: A name (`list_recipes`) or a YAML file.
        output: The run's folder; default: pretrain/RECIPE/seedN in the workspace.
        overrides: {"optimizer.lr": 1e-3, "seed": 1}, or ["optimizer.lr=1e-3"].
        workspace: Where data and runs are; default as on the command line.
        device: auto, cpu, cuda...
        progress: Called with a `progress.Snapshot` a few times a second.

    Returns:
        The folder of the model, which `load_backbone` takes.

    Raises:
        ConfigError: The recipe does not fit.
        DataError: Its data is missing or broken.
    """
    from maskclip_bench.data.demo import prepare_demo
    from maskclip_bench.pretrain.launch import launch_here
    from maskclip_bench.pretrain.recipe import load_recipe

    place = Workspace.open(workspace)
    loaded = load_recipe(str(recipe), list(_override_lines(overrides)))
    if loaded.on_demo_data:
        prepare_demo(place.data)
    return launch_here(
        loaded,
        output=Path(output) if output else place.pretraining(loaded.name, loaded.seed),
        data_root=place.data,
        workspace=place.root,
        device=device,
        progress=progress,
        stop_signals=(),
    )


def _override_lines(overrides: Mapping[str, Any] | Sequence[str]) -> Iterator[str]:
    import json

    if not isinstance(overrides, Mapping):
        yield from overrides
        return
    for key, value in overrides.items():
        yield f"{key}={json.dumps(value)}"
