"""Image-text matching: the right caption for an image, against one that is wrong in a detail.

| preset | an example is | metrics |
| --- | --- | --- |
| `winoground` | two images and their captions | text, image and group score |
| `caption_choice` | an image, a right and a wrong caption | accuracy by subset, their mean |

Winoground (Thrush et al., 2022): the text score counts examples where each image prefers its own
caption, the image score those where each caption prefers its own image, the group score those with
both; chance is 1/4, 1/4, 1/6. SugarCrepe (Hsieh et al., 2023) reports the accuracy of each of its
seven subsets. All comparisons are strict: a tie is wrong, so a collapsed model scores 0. (An argmax
over captions with the right one first, as in CLIP_benchmark, counts ties as right.)
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from maskclip_bench.config import Declaration
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.metrics import Floats, check_finite
from maskclip_bench.tasks.protocols.base import Protocol, ProtocolContext, open_split

PRESET_VERSION = 1
CHANCE = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}


class Settings(Declaration):
    """`protocols: {image_text_matching: ...}` of a data set."""

    preset: Literal["winoground", "caption_choice"]
    """What an example is."""


class ImageTextMatching(Protocol):
    """Captions that are wrong in a detail, in the joint space."""

    name = "image_text_matching"
    title = "Image-text matching"
    metric_labels: ClassVar[dict[str, str]] = {
        "text_score": "text",
        "image_score": "image",
        "group_score": "group",
        "mean_subset_accuracy": "mean of subsets",
        "caption_accuracy": "all",
    }
    settings_model: ClassVar[type[Declaration]] = Settings
    needs_text = True
    expected_seconds = 3.0

    def preset_version(self, task: TaskDeclaration) -> int:
        """Version of the preset."""
        return PRESET_VERSION

    def data_fingerprint(self, task: TaskDeclaration, workspace: Workspace) -> str:
        """Only the test split is looked at."""
        return open_split(task, "test", workspace).fingerprint

    def run(self, context: ProtocolContext) -> Measurement:
        """Compare the captions of the test split.

        Raises:
            ConfigError: The backbone has no text tower, or the data no captions.
            DataError: The data is missing or broken, or its captions make no examples.
        """
        settings: Settings = context.settings
        together = 2 if settings.preset == "winoground" else 1
        dataset = context.dataset("test", together=together)
        captions = dataset.need_captions()
        images = context.features.images(context.backbone, dataset, progress=context.progress)
        assert images.joint is not None
        texts = context.features.texts(
            context.backbone,
            [caption for of_image in captions for caption in of_image],
            progress=context.progress,
        )
        if settings.preset == "winoground":
            metrics, outcomes, primary = _winoground(dataset, images.joint, texts)
        else:
            metrics, outcomes, primary = _caption_choice(dataset, images.joint, texts)
        return Measurement(
            metrics=metrics,
            primary_metric=primary,
            outcomes=outcomes,
            preset=settings.preset,
            preset_version=PRESET_VERSION,
            details={
                "num_images": len(dataset),
                "num_examples": len(outcomes),
                "transform": context.backbone.transform_id,
                "data": dataset.fingerprint,
            },
        )


def similarity(images: Tensor, texts: Tensor) -> Floats:
    """Cosine of each image with the text at its place, float64 [N]; equal pairs give equal ones.

    Args:
        images: [N, P], L2-normalised.
        texts: [N, P], L2-normalised.

    Raises:
        NonFiniteError: A value is NaN or infinite.
    """
    check_finite(images, "embeddings")
    check_finite(texts, "embeddings")
    cosines: Floats = (images.cpu().double() * texts.cpu().double()).sum(dim=1).numpy()
    return cosines


def _winoground(
    dataset: Dataset, images: Tensor, texts: Tensor
) -> tuple[dict[str, Metric], pd.DataFrame, str]:
    """Scores of examples whose two images follow each other.

    Raises:
        DataError: They are not two by two, or an image has not one caption.
    """
    groups = dataset.groups
    one_caption = len(texts) == len(dataset)
    if not one_caption or len(dataset) % 2 or groups[::2] != groups[1::2]:
        raise DataError(
            f"{dataset.name} ({dataset.split}): preset winoground needs two images of a group, one "
            f"after the other, with one caption each; found {len(dataset)} images with "
            f"{len(texts)} captions. Use a reader of kind winoground, or preset caption_choice."
        )
    first, second = images[::2], images[1::2]
    own, other = texts[::2], texts[1::2]
    right = similarity(first, own), similarity(second, other)
    other_text = similarity(first, other), similarity(second, own)  # the same image
    text_score = (right[0] > other_text[0]) & (right[1] > other_text[1])
    image_score = (right[0] > other_text[1]) & (right[1] > other_text[0])  # the same text
    outcomes = pd.DataFrame({"sample_id": groups[::2], "group": groups[::2]})
    outcomes["text_score"] = text_score.astype(np.float64)
    outcomes["image_score"] = image_score.astype(np.float64)
    outcomes["group_score"] = (text_score & image_score).astype(np.float64)
    metrics = {
        name: Metric(float(outcomes[name].mean()), chance_level=chance)
        for name, chance in CHANCE.items()
    }
    return metrics, outcomes, "group_score"


def _caption_choice(
    dataset: Dataset, images: Tensor, texts: Tensor
) -> tuple[dict[str, Metric], pd.DataFrame, str]:
    """Accuracy of choosing the first of two captions; by subset where the data set has some.

    Raises:
        DataError: An image has not two captions.
    """
    if len(texts) != 2 * len(dataset) or any(len(own) != 2 for own in dataset.need_captions()):
        raise DataError(
            f"{dataset.name} ({dataset.split}): preset caption_choice needs a right and a wrong "
            f"caption, in that order, for each image; found {len(dataset)} images with "
            f"{len(texts)} captions. Use a reader of kind sugar_crepe, or preset winoground."
        )
    hits = similarity(images, texts[::2]) > similarity(images, texts[1::2])
    outcomes = pd.DataFrame({"sample_id": dataset.sample_ids, "group": dataset.groups})
    outcomes["caption_accuracy"] = hits.astype(np.float64)
    metrics = {"caption_accuracy": Metric(float(hits.mean()), chance_level=0.5)}
    if dataset.labels is None:
        return metrics, outcomes, "caption_accuracy"
    columns = []
    for label in np.unique(dataset.labels):
        name = f"caption_accuracy_{dataset.class_names[label]}"
        of_subset = dataset.labels == label
        outcomes[name] = np.where(of_subset, hits, np.nan)
        metrics[name] = Metric(float(hits[of_subset].mean()), chance_level=0.5)
        columns.append(name)
    metrics["mean_subset_accuracy"] = Metric(
        float(np.mean([metrics[name].value for name in columns])),
        chance_level=0.5,
        statistic="mean_of_columns",
        columns=tuple(columns),
    )
    return metrics, outcomes, "mean_subset_accuracy"
