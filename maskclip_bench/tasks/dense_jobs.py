"""Dense protocols as jobs: a config of mmseg or mmdet, filled and run in a subprocess.

The job (`maskclip_bench.backbones.openmmlab.dense_cell`) trains and tests in its work folder; this
module writes its job file, reads its progress, and starts it again after an interruption. Nothing
of OpenMMLab is imported here, and no model is loaded: the job loads the row.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from maskclip_bench import storage
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.dense_job import DenseFolder, DenseJob, DenseSplit
from maskclip_bench.config import Declaration, validate
from maskclip_bench.data.readers import open_dataset, root_of
from maskclip_bench.data_files import config_file
from maskclip_bench.errors import ConfigError, MissingDependencyError
from maskclip_bench.extras import install_command
from maskclip_bench.jobs import run_job
from maskclip_bench.runtime import DATA_VARIABLE, WORKSPACE_VARIABLE, Workspace
from maskclip_bench.tasks.dense_outcomes import SplitResult, read_split
from maskclip_bench.tasks.protocols.base import (
    Protocol,
    ProtocolContext,
    declared_splits,
    split_name,
)

if TYPE_CHECKING:
    from maskclip_bench.data.dataset import Dataset
    from maskclip_bench.tasks.declaration import TaskDeclaration

JOB_MODULE = "maskclip_bench.backbones.openmmlab.dense_cell"
JOB_IMPORTS = (JOB_MODULE, "maskclip_bench.backbones.openmmlab.toolbox_scripts")
ANY_ARCHITECTURE = "*"
_OF_THE_ROW = ("weights_state", "transform")
"""What a record says of how the job loaded its row."""
TRAINING_SHARE = 0.85
"""Of the display's bar; the rest is testing."""


class DenseSettings(Declaration):
    """What a data set may set for a dense protocol."""

    configs: dict[str, str]
    """Architecture (a backbone's `arch`) -> config file; `*` is for all others."""
    also_test: dict[str, str] = Field(default_factory=dict)
    """Suffix -> another split of the data set, in its own words, that is tested too; its metrics
    get the suffix: `{ood: validation_ood}` gives `mean_iou_ood`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the config -> values laid over it."""
    preset: str
    """Name of the recipe in the config, for records and tables."""
    preset_version: int = 1
    """Raised when the recipe changes."""


class OwnRecipe(Declaration):
    """What a row may change of a dense recipe (`openmmlab: {segmentation: ...}` in backbones/)."""

    config: str | None = None
    """Config file instead of the data set's for the architecture."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the config -> values laid over those of the data set."""


@dataclass(frozen=True)
class JobResult:
    """What a dense job found.

    Attributes:
        splits: The test split, then those of `also_test`.
        report: `run_report.json`: which kernels were used, how many parameters were trained.
        config: The config file.
        preset: The data set's, with a suffix where the row changes the recipe.
    """

    splits: list[SplitResult]
    report: dict[str, Any]
    config: Path
    preset: str


class DenseProtocol(Protocol):
    """Base of the two protocols that train through the backbone with OpenMMLab."""

    runs_as_job = True
    job_loads_backbone = True
    shares_maps = True
    expected_seconds = 60.0
    settings_model = DenseSettings
    toolbox: Literal["mmseg", "mmdet"]

    def missing_packages(self) -> list[str]:
        """What of OpenMMLab is not installed."""
        return missing_packages(self.toolbox)

    def left_out(self, task: TaskDeclaration, backbone: BackboneDeclaration) -> str | None:
        """No OpenMMLab, a model it cannot run, or no config for the architecture."""
        if missing_packages(self.toolbox):
            return f"{self.toolbox} is not installed: {install_command('openmmlab')}"
        if not backbone.has_vision_trunk:
            return f"{backbone.display_name} is no timm or open_clip model, which {self.name} needs"
        settings = self.settings_of(task)
        if config_name(settings, backbone, self.name) is None:
            return (
                f"there is no {self.toolbox} config for {backbone.arch or 'a row without arch'}, "
                f"only for {' and '.join(settings.configs)}; a row may bring its own as "
                f"openmmlab: {{{self.name}: {{config: ...}}}}"
            )
        return None

    def preset_version(self, task: TaskDeclaration) -> int:
        """As the data set declares it."""
        return int(self.settings_of(task).preset_version)

    def task_fingerprints(self, task: TaskDeclaration, workspace: Workspace) -> dict[str, str]:
        """Also the content of the configs: cells of a changed config are measured again."""
        configs = {
            arch: config_fingerprint(config_file(name))
            for arch, name in self.settings_of(task).configs.items()
        }
        return {
            **super().task_fingerprints(task, workspace),
            "configs": storage.fingerprint(configs),
        }

    def data_fingerprint(self, task: TaskDeclaration, workspace: Workspace) -> str:
        """Hash of all splits, those of `also_test` among them.

        Raises:
            DataError: The data is missing or broken.
        """
        names: dict[str, str] = {ours: theirs for ours, theirs in task.splits.items()}
        for suffix, split in self.settings_of(task).also_test.items():
            names[f"also_test.{suffix}"] = split
        return storage.fingerprint(
            {
                name: self.open(task, split, workspace).fingerprint
                for name, split in sorted(names.items())
            }
        )

    def open(self, task: TaskDeclaration, split: str, workspace: Workspace) -> Dataset:
        """A split by the data set's own name: the one list of samples of all protocols.

        Raises:
            DataError: The data is missing or broken.
        """
        others = self.settings_of(task).also_test.values()
        return open_dataset(
            task.reader,
            split,
            workspace.data,
            what=task.name,
            splits=list(dict.fromkeys([*declared_splits(task), *others])),
        )

    def cell_fingerprints(
        self, task: TaskDeclaration, backbone: BackboneDeclaration, workspace: Workspace
    ) -> dict[str, str]:
        """Also what the row changes of the recipe."""
        parts = self.task_fingerprints(task, workspace)
        own = own_recipe_fingerprint(self.settings_of(task), backbone, self.name)
        return parts if own is None else {**parts, "own_recipe": own}

    def split(self, dataset: Dataset, root: Path, folder: DenseFolder) -> DenseSplit:
        """A split in the words of the job's message; may write a file into the job's folder."""
        raise NotImplementedError

    def run_dense(self, context: ProtocolContext) -> JobResult:
        """Train and test the context's backbone; go on where an earlier try stopped.

        Raises:
            MissingDependencyError: OpenMMLab is not installed.
            ConfigError: There is no config for the backbone's architecture.
            DataError: The data is missing or broken.
            JobError: The job failed; see `run_job`.
        """
        missing = missing_packages(self.toolbox)
        if missing:
            raise MissingDependencyError(
                f"{self.title} needs {', '.join(missing)}: {install_command('openmmlab')}"
            )
        settings: DenseSettings = context.settings
        backbone = context.backbone
        name = config_name(settings, backbone.declaration, self.name)
        if name is None:
            raise ConfigError(
                f"{context.task.name}: protocols.{self.name}.configs has no config for "
                f"{backbone.declaration.arch!r} and no '{ANY_ARCHITECTURE}'. Add one, or set "
                f"openmmlab: {{{self.name}: {{config: ...}}}} in the backbone's declaration."
            )
        config = config_file(name)
        tested = {"": split_name(context.task, "test"), **settings.also_test}
        training = split_name(context.task, "train")
        names = list(dict.fromkeys([training, *tested.values()]))
        opened = {name: self.open(context.task, name, context.workspace) for name in names}
        self._check(context, opened)
        own = own_recipe(backbone.declaration, self.name)
        options = {**settings.options, **own.options}
        folder = self._folder(context, config, names, options)
        with storage.exclusive(folder.path):
            report = self._run(context, folder, config, opened, list(tested.values()), options)
        pictures = _pictures(folder, list(tested.values()), context.workspace.root)
        if pictures:
            report = {**report, "pictures": pictures}
        left_over = {n: each.left_over.to_json() for n, each in opened.items() if each.left_over}
        if left_over:
            report = {**report, "left_over": left_over}
        return JobResult(
            splits=[
                SplitResult(suffix, split, *read_split(folder, split))
                for suffix, split in tested.items()
            ],
            report=report,
            config=config,
            preset=preset_name(settings, backbone.declaration, self.name),
        )

    def check_split(self, dataset: Dataset, root: Path) -> None:
        """Check that the files of a split fit together, before anything starts.

        Raises:
            DataError: Something is missing or does not fit.
        """
        raise NotImplementedError

    def _check(self, context: ProtocolContext, opened: Mapping[str, Dataset]) -> None:
        """`check_split`, once for each content of a split."""
        root = root_of(context.task.reader, context.workspace.data)
        for dataset in opened.values():
            mark = context.workspace.jobs / ".checked" / f"{self.name}-{dataset.fingerprint}"
            if not mark.is_file():
                self.check_split(dataset, root)
                storage.write_text(mark, "")

    def _folder(
        self, context: ProtocolContext, config: Path, splits: list[str], options: dict[str, Any]
    ) -> DenseFolder:
        """The work folder of exactly this job on these weights and data."""
        identity = {
            "toolbox": self.toolbox,
            "splits": splits,
            "options": options,
            "weights": context.backbone.identity or context.backbone.weights_fingerprint,
            "preprocess": context.backbone.declaration.preprocess.model_dump(mode="json"),
            "config": config_fingerprint(config),
            "data": self.data_fingerprint(context.task, context.workspace),
        }
        name = f"{self.name}__{context.task.name}-{storage.fingerprint(identity)}"
        return DenseFolder(context.workspace.jobs / context.backbone.row_id / name)

    def _message(
        self,
        context: ProtocolContext,
        folder: DenseFolder,
        config: Path,
        opened: Mapping[str, Dataset],
        tested: Sequence[str],
        options: dict[str, Any],
    ) -> DenseJob:
        """The message; the first of `opened` is the training split."""
        declaration = context.backbone.declaration.model_dump(mode="json", exclude={"name"})
        storage.write_json(folder.row, declaration)  # JSON is YAML
        root = root_of(context.task.reader, context.workspace.data).absolute()
        splits = {name: self.split(dataset, root, folder) for name, dataset in opened.items()}
        training = next(iter(opened.values()))
        return DenseJob(
            toolbox=self.toolbox,
            config=str(config),
            work_dir=str(folder.path),
            backbone={"backbone": str(folder.row), "seed": context.backbone.seed},
            train=splits[training.split],
            tests=[splits[name] for name in tested],
            validate_on=self._validation(context, splits, root, folder),
            classes=training.class_names or None,
            options=options,
            maps=None if context.shared_maps is None else str(context.shared_maps.absolute()),
        )

    def _validation(
        self,
        context: ProtocolContext,
        splits: Mapping[str, DenseSplit],
        root: Path,
        folder: DenseFolder,
    ) -> DenseSplit | None:
        """The data set's validation split, or its test split where it has no other; if asked."""
        if not context.validate:
            return None
        ours = "validation" if "validation" in context.task.splits else "test"
        name = split_name(context.task, ours)
        if name in splits:
            return splits[name]
        return self.split(self.open(context.task, name, context.workspace), root, folder)

    def _run(
        self,
        context: ProtocolContext,
        folder: DenseFolder,
        config: Path,
        opened: Mapping[str, Dataset],
        tested: Sequence[str],
        options: dict[str, Any],
    ) -> dict[str, Any]:
        """Run the job unless its folder holds all results; returns the run report."""
        folder.path.mkdir(parents=True, exist_ok=True)
        self._message(context, folder, config, opened, tested, options).write()
        if not all(folder.scores(name).is_file() for name in tested):
            folder.progress.unlink(missing_ok=True)
            context.progress("starting", 0, 100)
            run_job(
                job_command(folder.job, context),
                log_file=folder.log,
                num_threads=context.num_threads,
                cancel=context.cancel,
                on_poll=lambda: _report(context, folder, tested),
                environment=job_environment(context),
                imports=JOB_IMPORTS,
            )
        row = storage.read_object(folder.loaded_row) or {}
        loaded = {key: value for key, value in row.items() if key in _OF_THE_ROW}
        return {**(storage.read_object(folder.report) or {}), **loaded}


def _pictures(folder: DenseFolder, splits: Sequence[str], root: Path) -> dict[str, str]:
    """Split -> its list of pictures, as a path below the workspace where it is there."""
    found = {split: folder.pictures(split) for split in splits}
    return {
        split: (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()
        for split, file in found.items()
        if file.is_file()
    }


def missing_packages(toolbox: str) -> list[str]:
    """Which of the packages that a toolbox needs cannot be imported here."""
    packages = ("mmengine", "mmcv", toolbox)
    return [name for name in packages if importlib.util.find_spec(name) is None]


def config_name(
    settings: DenseSettings, backbone: BackboneDeclaration, protocol: str
) -> str | None:
    """The config for a backbone: its own, else that of its architecture, else the default.

    Raises:
        ConfigError: The backbone's `openmmlab:` entry is wrong.
    """
    return own_recipe(backbone, protocol).config or _usual_config(settings, backbone)


def _usual_config(settings: DenseSettings, backbone: BackboneDeclaration) -> str | None:
    configs = settings.configs
    return configs.get(backbone.arch) or configs.get(ANY_ARCHITECTURE)


def own_recipe(backbone: BackboneDeclaration, protocol: str) -> OwnRecipe:
    """What a row changes of a protocol's recipe.

    Raises:
        ConfigError: Its `openmmlab:` entry is wrong.
    """
    return validate(
        backbone.openmmlab.get(protocol, {}),
        OwnRecipe,
        where=f"{backbone.name}: openmmlab.{protocol}",
    )


def own_recipe_fingerprint(
    settings: DenseSettings, backbone: BackboneDeclaration, protocol: str
) -> str | None:
    """Hash of what a row changes of the data set's recipe, None if nothing.

    Raises:
        ConfigError: Its `openmmlab:` entry is wrong, or names a config that does not exist.
    """
    own = own_recipe(backbone, protocol)
    changes: dict[str, Any] = {}
    if own.config is not None and own.config != _usual_config(settings, backbone):
        changes["config"] = config_fingerprint(config_file(own.config))
    if own.options:
        changes["options"] = own.options
    return storage.fingerprint(changes) if changes else None


def preset_name(settings: DenseSettings, backbone: BackboneDeclaration, protocol: str) -> str:
    """The data set's preset; a row with its own recipe gets its own name, for its own column."""
    own = own_recipe_fingerprint(settings, backbone, protocol)
    return settings.preset if own is None else f"{settings.preset}+own-{own[:8]}"


def config_fingerprint(path: Path) -> str:
    """Hash of an mmengine config and of all that it is based on."""
    digest = hashlib.sha256()
    waiting, seen = [path], set()
    while waiting:
        current = waiting.pop().resolve()
        if current in seen:
            continue
        seen.add(current)
        text = current.read_text(encoding="utf-8")
        digest.update(text.encode())
        waiting += [current.parent / base for base in _bases(text) if "::" not in base]
    return digest.hexdigest()[:16]


def _bases(text: str) -> list[str]:
    """The value of `_base_` in a config."""
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "_base_" for target in statement.targets
        ):
            value = ast.literal_eval(statement.value)
            return [value] if isinstance(value, str) else list(value)
    return []


def job_command(job_file: Path, context: ProtocolContext, *, module: str = JOB_MODULE) -> list[str]:
    """The job on this device; under torchrun where there are several GPUs to use."""
    import torch

    num_gpus = torch.cuda.device_count() if context.device.type == "cuda" else 0
    if num_gpus > 1 and context.device.index is None:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_gpus}"]
        return [sys.executable, *launcher, "-m", module, str(job_file)]
    return [sys.executable, "-W", "ignore", "-m", module, str(job_file)]


def job_environment(context: ProtocolContext) -> dict[str, str]:
    """Variables that give the job this run's workspace, data and device."""
    variables = {
        WORKSPACE_VARIABLE: str(context.workspace.root),
        DATA_VARIABLE: str(context.workspace.data),
        "MPLBACKEND": "Agg",
    }
    if context.device.type == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = "-1"
    elif context.device.index is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        choices = [part for part in visible.split(",") if part]
        index = context.device.index
        variables["CUDA_VISIBLE_DEVICES"] = choices[index] if choices else str(index)
    return variables


def _report(context: ProtocolContext, folder: DenseFolder, splits: Sequence[str]) -> None:
    """Report what the job's hook wrote last."""
    state = folder.read_progress()
    if state is None:
        return
    stage, done, total = state
    if stage == "training":
        fraction = TRAINING_SHARE * done / total
    else:
        finished = sum(folder.scores(split).is_file() for split in splits)
        tested = min(finished + done / total, len(splits)) / len(splits)
        fraction = TRAINING_SHARE + (1 - TRAINING_SHARE) * tested
    context.progress(f"{stage} {done}/{total}", round(100 * fraction), 100)
