"""Protocols that train a classifier through the backbone, as jobs.

The job (`maskclip_bench.tasks.finetuning.job`) trains and tests in its work folder; this module
writes its message, follows its progress, goes on with it after an interruption, and makes the
measurement of what it found. One training serves all tasks with the same training split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from maskclip_bench import storage
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.config import Declaration
from maskclip_bench.errors import ConfigError, JobError
from maskclip_bench.jobs import run_job
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration, load_task_declaration
from maskclip_bench.tasks.dense_jobs import job_command, job_environment
from maskclip_bench.tasks.finetuning.folder import (
    JobSplit,
    TrainFolder,
    TrainJob,
    open_split,
    read_report,
    write_tensors,
)
from maskclip_bench.tasks.finetuning.recipe import (
    NORM_EPS,
    TrainRecipe,
    preset_name,
    with_options,
)
from maskclip_bench.tasks.protocols.base import (
    Protocol,
    ProtocolContext,
    declared_splits,
    split_name,
)
from maskclip_bench.tasks.protocols.classification import (
    CLASSIFICATION_LABELS,
    ClassificationMetric,
    ClassificationResult,
)
from maskclip_bench.tasks.protocols.prompts import zero_shot_logit_weights

if TYPE_CHECKING:
    from maskclip_bench.data.dataset import Dataset
    from maskclip_bench.tasks.finetuning.scoring import ScoredSplit

JOB_MODULE = "maskclip_bench.tasks.finetuning.job"
SAMPLE_COLUMNS = (
    "sample_id",
    "group",
    "label",
    "prediction",
    "confidence",
    "truth_confidence",
)
TRAINING_SHARE = 0.85
"""Of the display's bar; the rest is testing."""


class TrainedSettings(Declaration):
    """What a data set may set for a protocol that trains through the backbone."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the preset -> values laid over it ("augmentation.mixup"); the preset then has
    a name of its own in records."""
    metric: ClassificationMetric = "top1_accuracy"
    """What the data set is reported with."""
    also_test: dict[str, str] = Field(default_factory=dict)
    """Suffix -> another split of the data set, in its own words, that is tested too; its metrics
    get the suffix: `{ood: val_ood}` gives `top1_accuracy_ood`."""
    other_sets: list[str] = Field(default_factory=list)
    """Other declared data sets with the same classes, whose test splits are tested too
    (`imagenet_v2`); their names are the suffixes. They must be on this machine."""


class TrainedProtocol(Protocol):
    """A classifier trained through the backbone."""

    runs_as_job = True
    shares_training = True
    expected_seconds = 60.0
    metric_labels = CLASSIFICATION_LABELS
    presets: ClassVar[Mapping[str, TrainRecipe]]

    def recipe(self, task: TaskDeclaration) -> TrainRecipe:
        """The preset that `task` uses, with its options.

        Raises:
            ConfigError: The settings or an option do not fit.
        """
        settings = self.settings_of(task)
        where = f"{task.name}: protocols.{self.name}.options"
        recipe = with_options(self.presets[settings.preset], settings.options, where=where)
        if recipe.head == "zero_shot" and getattr(settings, "prompts", None) is None:
            raise ConfigError(
                f"{where}: the head zero_shot begins as the text classifier of a prompt set. Use "
                "finetune with preset wise_ft and prompts: ..."
            )
        return recipe

    def alphas(self, settings: Any) -> list[float]:
        """Weights between the first and the trained ones that are tested, too."""
        return []

    def preset_version(self, task: TaskDeclaration) -> int:
        """Version of the preset."""
        return self.presets[self.settings_of(task).preset].version

    def needs_text_tower(self, task: TaskDeclaration) -> bool:
        """Whether the head begins as the text classifier."""
        return self.recipe(task).pooling == "joint"

    def left_out(self, task: TaskDeclaration, backbone: BackboneDeclaration) -> str | None:
        """A model without a text tower, or one that is no ViT, where the preset needs it."""
        recipe = self.recipe(task)
        needs_vit = recipe.pooling in NORM_EPS or recipe.drop_path or recipe.freeze_patch_embedding
        if needs_vit and not backbone.has_vision_trunk:
            preset = self.settings_of(task).preset
            return f"{backbone.display_name} is no timm or open_clip model, which {preset} needs"
        return super().left_out(task, backbone)

    def data_fingerprint(self, task: TaskDeclaration, workspace: Workspace) -> str:
        """Hash of the training split and of all splits that are tested.

        Raises:
            ConfigError: The data set has no such split.
            DataError: The data is missing or broken.
        """
        splits = {"train": self._train(task), **{s.key: s for s in self._tests(task)}}
        return storage.fingerprint(
            {key: open_split(split, workspace).fingerprint for key, split in sorted(splits.items())}
        )

    def run(self, context: ProtocolContext) -> Measurement:
        """Train and test; go on where an earlier try stopped.

        Raises:
            ConfigError: The preset fits neither the data nor the model.
            DataError: The data is missing or broken.
            TrainingError: The loss is not finite (in a job: JobError).
            JobError: The job failed; see `run_job`.
        """
        from maskclip_bench.tasks.finetuning.job import open_tested

        job, zero_shot = self._job(context)
        folder = job.folder
        train = open_split(job.train, context.workspace)
        tested = open_tested(job, train, context.workspace)
        with storage.exclusive(folder.path):
            if zero_shot is not None:
                digest = write_tensors(folder.zero_shot, {"weight": zero_shot})
                storage.write_text(folder.zero_shot.with_suffix(".sha256"), digest)
            if not all(_results(folder, split, job.alphas) for split in tested):
                self._train_and_test(context, job)
            found = [_results(folder, split, job.alphas) for split in tested]
        if not all(found):
            raise JobError(
                f"The results in {folder.path} cannot be read. Delete that folder and run again."
            )
        return self._measurement(context, job, train, tested, found)

    def _train_and_test(self, context: ProtocolContext, job: TrainJob) -> None:
        """In a subprocess; in this one where the model is only here, or all is trained already."""
        backbone, folder = context.backbone, job.folder
        declaration, seed = backbone.declaration, backbone.seed
        only_here = declaration.family.missing(declaration, context.workspace, seed) is not None
        only_tests = folder.report.is_file() and context.device.type == "cpu"
        if only_here or only_tests:
            from maskclip_bench.tasks.finetuning.job import run_here

            run_here(
                job,
                backbone,
                context.workspace,
                progress=context.progress,
                stop=context.cancel.is_set,
            )
            return
        storage.write_json(folder.row, declaration.model_dump(mode="json", exclude={"name"}))
        folder.write(job)
        folder.progress.unlink(missing_ok=True)
        context.progress("starting", 0, 100)
        run_job(
            job_command(folder.job, context, module=JOB_MODULE),
            log_file=folder.log,
            num_threads=context.num_threads,
            cancel=context.cancel,
            on_poll=lambda: _report(context, folder),
            environment=job_environment(context),
            imports=(JOB_MODULE,),
        )

    def _job(self, context: ProtocolContext) -> tuple[TrainJob, Any]:
        """The message, and the first weights [C, P] of a zero-shot head (else None)."""
        task, backbone = context.task, context.backbone
        recipe = self.recipe(task)
        train = self._train(task)
        zero_shot = None
        dataset = open_split(train, context.workspace)
        if recipe.head == "zero_shot":
            zero_shot = zero_shot_logit_weights(context, dataset, context.settings.prompts)
        identity = {
            "weights": backbone.weights_fingerprint,
            "transform": backbone.transform_id,
            "recipe": recipe.model_dump(mode="json"),
            "train": dataset.fingerprint,
            "seed": context.seed,
            "zero_shot": None if zero_shot is None else storage.fingerprint(zero_shot.tolist()),
        }
        name = f"{self.name}-{storage.fingerprint(identity)}"  # several tasks may share it
        folder = TrainFolder(context.workspace.jobs / backbone.row_id / name)
        job = TrainJob(
            work_dir=str(folder.path),
            row=str(folder.row),
            seed=backbone.seed,
            weights=backbone.weights_fingerprint,
            recipe=recipe,
            draws_seed=context.seed,
            train=train,
            tests=self._tests(task),
            alphas=self.alphas(context.settings),
            metric=context.settings.metric,
            device=context.device.type,
        )
        return job, zero_shot

    def _train(self, task: TaskDeclaration) -> JobSplit:
        return self._split(task, split_name(task, "train"))

    def _tests(self, task: TaskDeclaration) -> list[JobSplit]:
        """The test split, those of `also_test`, and those of `other_sets`.

        Raises:
            ConfigError: A data set of `other_sets` has no test split, or two have one suffix.
        """
        settings = self.settings_of(task)
        found = [self._split(task, split_name(task, "test"))]
        found += [self._split(task, s, key=key) for key, s in settings.also_test.items()]
        for name in settings.other_sets:
            other = load_task_declaration(name)
            found.append(self._split(other, split_name(other, "test"), key=other.name))
        keys = [split.key for split in found]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ConfigError(
                f"{task.name}: protocols.{self.name} tests two splits as {repeated[0]!r}. Give "
                "each suffix of also_test and each of other_sets once."
            )
        return found

    def _split(self, task: TaskDeclaration, split: str, *, key: str = "") -> JobSplit:
        settings = task.protocols.get(self.name, {})
        others = settings.get("also_test", {}).values()
        return JobSplit(
            key=key,
            task=task.model_dump(mode="json"),
            split=split,
            splits=list(dict.fromkeys([*declared_splits(task), *others])),
            present_only=task.class_names.present_only,
        )

    def _measurement(
        self,
        context: ProtocolContext,
        job: TrainJob,
        train: Dataset,
        tested: list[ScoredSplit],
        found: list[dict[float | None, ClassificationResult]],
    ) -> Measurement:
        settings = context.settings
        report = read_report(job.folder)
        metrics, outcomes = joined(tested, found)
        best = _best_evaluation(job, report)
        if best is not None:
            name, column, by_step = best
            report["evaluations"] = by_step
            outcomes = outcomes.merge(column, on="sample_id", how="left")
            metrics[name] = replace(
                metrics["top1_accuracy"], value=float(outcomes[name].mean()), label=None
            )
        report.pop("sha256", None)
        return Measurement(
            metrics=metrics,
            primary_metric=settings.metric,
            outcomes=outcomes,
            preset=preset_name(settings.preset, settings.options),
            preset_version=self.preset_version(context.task),
            details={
                "recipe": job.recipe.model_dump(mode="json"),
                **report,
                "num_train": len(train),
                "num_classes": len(train.class_names),
                "alphas": job.alphas,
                "feature_point": context.backbone.feature_point,
                "transform": context.backbone.transform_id,
                "data": {
                    "train": train.fingerprint,
                    **{s.key or "test": s.dataset.fingerprint for s in tested},
                },
            },
        )


def _results(
    folder: TrainFolder, split: ScoredSplit, alphas: list[float]
) -> dict[float | None, ClassificationResult]:
    """Results of a split by alpha (None = the trained weights); empty if one is not there."""
    from maskclip_bench.tasks.finetuning.scoring import read_result

    found = {alpha: read_result(folder, split.identity(alpha)) for alpha in [None, *alphas]}
    there = {alpha: result for alpha, result in found.items() if result is not None}
    return there if len(there) == len(found) else {}


def joined(
    tested: list[ScoredSplit], found: list[dict[float | None, ClassificationResult]]
) -> tuple[dict[str, Metric], pd.DataFrame]:
    """Metrics and outcomes of several splits and alphas as one measurement.

    The test split keeps its ids; the ids and groups of another split begin with its suffix. A
    column is NaN on the rows of other splits.

    Args:
        tested: The splits, the test split first.
        found: The results of each by alpha; None = the trained weights.
    """
    metrics: dict[str, Metric] = {}
    tables = []
    for split, results in zip(tested, found, strict=True):
        suffix = f"_{split.key}" if split.key else ""
        table = pd.DataFrame()
        for alpha, result in results.items():
            outcomes = result.outcomes
            if alpha is None:
                for column in SAMPLE_COLUMNS:
                    table[column] = outcomes[column]
                for column in ("sample_id", "group"):
                    if split.key:
                        table[column] = f"{split.key}/" + table[column].astype(str)
            for name, metric in result.metrics.items():
                if alpha is not None and name not in ("top1_accuracy", split.metric):
                    continue
                full = name + suffix + ("" if alpha is None else f"_alpha_{alpha:g}")
                table[full] = outcomes[name].to_numpy(dtype=np.float64)
                metrics[full] = metric
        tables.append(table)
    return metrics, pd.concat(tables, ignore_index=True)


def _best_evaluation(
    job: TrainJob, report: Mapping[str, Any]
) -> tuple[str, pd.DataFrame, dict[str, float]] | None:
    """Of the tests during training the best: name, outcomes, and the accuracy of all by step."""
    every = job.recipe.evaluate_every_epochs
    if every is None:
        return None
    stride = every * int(report["steps_per_epoch"])
    steps = range(stride, int(report["steps"]) + 1, stride)
    tables = {
        step: pd.read_parquet(job.folder.evaluation(step))
        for step in steps
        if job.folder.evaluation(step).is_file()
    }
    if not tables:
        return None
    by_step = {str(step): float(t["top1_accuracy"].mean()) for step, t in tables.items()}
    best = max(tables, key=lambda step: (by_step[str(step)], -step))
    name = "top1_accuracy_best_evaluation"
    return name, tables[best].rename(columns={"top1_accuracy": name}), by_step


def _report(context: ProtocolContext, folder: TrainFolder) -> None:
    """Pass on what the job wrote last."""
    state = folder.read_progress()
    if state is None:
        return
    stage, done, total = state
    fraction = TRAINING_SHARE * done / total
    if stage != "training":
        fraction = TRAINING_SHARE + (1 - TRAINING_SHARE) * done / total
    context.progress(f"{stage} {done}/{total}", round(100 * fraction), 100)
