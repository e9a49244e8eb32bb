"""Zero-shot classification: the nearest class by the embeddings of its prompts (CLIP, Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.config import Declaration
from maskclip_bench.data.readers import Dataset
from maskclip_bench.results.measurement import Measurement
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.metrics import Candidates, Integers
from maskclip_bench.tasks.protocols.base import Protocol, ProtocolContext, open_split
from maskclip_bench.tasks.protocols.classification import (
    CLASSIFICATION_LABELS,
    ClassificationMetric,
    classification_result,
    multi_label_result,
)
from maskclip_bench.tasks.protocols.prompts import (
    build_zero_shot_classifier,
    class_names_of,
    logit_scale_of,
    prompt_set,
    prompts_of,
    templates_of,
)

BLOCK = 8192
"""Images scored at a time."""


class Settings(Declaration):
    """`protocols: {zero_shot_classification: ...}` of a data set."""

    prompts: str
    """Name of a prompt set: of the data set itself, or a shared one (`slip_7_prompts`,
    `clip_80_prompts`, `class_name_only`). It is the preset of the record."""
    metric: ClassificationMetric = "top1_accuracy"
    """What the data set is reported with."""


class ZeroShotClassification(Protocol):
    """Images against class prompts in the joint space."""

    name = "zero_shot_classification"
    title = "Zero-shot"
    metric_labels = CLASSIFICATION_LABELS
    settings_model: ClassVar[type[Declaration]] = Settings
    needs_text = True
    expected_seconds = 3.0

    def preset_version(self, task: TaskDeclaration) -> int:
        """Version of the prompt set."""
        return prompt_set(task, self.settings_of(task).prompts).version

    def data_fingerprint(self, task: TaskDeclaration, workspace: Workspace) -> str:
        """Only the test split is looked at."""
        return open_split(task, "test", workspace).fingerprint

    def run(self, context: ProtocolContext) -> Measurement:
        """Classify the test split.

        Raises:
            ConfigError: The backbone has no text tower, or class names are missing.
            DataError: The data is missing or broken.
        """
        settings: Settings = context.settings
        dataset = context.dataset("test")
        names, classes = self._names(context)
        prompts = prompt_set(context.task, settings.prompts)
        templates = templates_of(prompts)
        scores = zero_shot_scores(
            context, dataset, [names[index] for index in classes], settings.prompts
        )  # [N, C]
        if dataset.multi_labels is not None:
            result = multi_label_result(scores, dataset, primary=settings.metric)
        else:
            result = classification_result(
                scores,
                dataset,
                classes=classes,
                primary=settings.metric,
                probabilities=(logit_scale_of(context.backbone) * scores).softmax(dim=1),
            )
        return Measurement(
            metrics=result.metrics,
            primary_metric=settings.metric,
            outcomes=result.outcomes,
            preset=settings.prompts,
            preset_version=prompts.version,
            details={
                "num_images": len(dataset),
                "num_classes": len(classes),
                "num_templates": len(templates),
                "num_prompts": sum(len(names[index]) for index in classes) * len(templates),
                "templates_hash": storage.fingerprint(templates),
                "class_names_hash": storage.fingerprint([names[index] for index in classes]),
                "transform": context.backbone.transform_id,
                "data": dataset.fingerprint,
            },
        )

    def texts(self, context: ProtocolContext) -> list[str]:
        """Every template with every alias of the classes."""
        names, classes = self._names(context)
        templates = templates_of(prompt_set(context.task, context.settings.prompts))
        prompts = prompts_of([names[index] for index in classes], templates)
        return [prompt for of_class in prompts for prompt in of_class]

    def _names(self, context: ProtocolContext) -> tuple[list[list[str]], Integers]:
        """Aliases of each class, and the labels that the classifier may answer."""
        dataset = context.dataset("test")
        names = class_names_of(context.task, dataset)
        return names, self._classes(context.task, dataset, len(names))

    @staticmethod
    def _classes(task: TaskDeclaration, dataset: Dataset, num_classes: int) -> Integers:
        """Labels that the classifier may answer, ascending."""
        if task.class_names.present_only:
            return np.unique(dataset.need_labels())
        return np.arange(num_classes, dtype=np.int64)


def zero_shot_scores(
    context: ProtocolContext, dataset: Dataset, class_names: Sequence[Sequence[str]], prompts: str
) -> Tensor:
    """Cosines of a split's images with classes, [N, C]; equal classes get equal ones.

    Args:
        context: Of the cell.
        dataset: The split.
        class_names: Aliases of each class.
        prompts: Name of a prompt set.

    Raises:
        ConfigError: The backbone has no text tower, or there is no such prompt set.
    """
    classifier = build_zero_shot_classifier(
        class_names,
        templates_of(prompt_set(context.task, prompts)),
        lambda texts: context.features.texts(context.backbone, texts, progress=context.progress),
    ).to(context.device)  # [C, P]
    images = context.features.images(context.backbone, dataset, progress=context.progress)
    assert images.joint is not None
    candidates = Candidates(classifier)
    return torch.cat(
        [candidates.scores(part.to(context.device)) for part in images.joint.split(BLOCK)]
    )
