"""Image-text retrieval: recall@k in both directions, as CLIP papers count it.

A query counts once if any of its matches is among the first k: an image has several captions, a
caption one image. (A "true" recall, the share of an image's captions found, is another number.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from maskclip_bench.config import Declaration
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.metrics import Ranks, retrieval_chance
from maskclip_bench.tasks.pair_ranks import retrieval_ranks
from maskclip_bench.tasks.protocols.base import Protocol, ProtocolContext, open_split

PRESET_VERSION = 2
"""2: only equal embeddings tie (1: those whose cosines differed by less than 1e-6)."""
PREFIXES = {"plain_captions": "", "a_photo_of": "a photo of "}
"""The text before every caption. CLIP's paper uses "a photo of", most public code uses none."""
KS = (1, 5, 10)
IMAGE_TO_TEXT = "image_to_text_recall"
TEXT_TO_IMAGE = "text_to_image_recall"


class Settings(Declaration):
    """`protocols: {retrieval: ...}` of a data set."""

    preset: Literal["plain_captions", "a_photo_of"] = "plain_captions"
    """plain_captions: captions as they are. a_photo_of: "a photo of " before each, as in CLIP."""
    captions_per_image: int | None = Field(default=None, ge=1)
    """Captions kept of each image, the first ones; None keeps all (COCO's test split then has
    25,010 captions rather than 25,000)."""
    metric: Literal["mean_recall@1", "image_to_text_recall@1", "text_to_image_recall@1"] = (
        "mean_recall@1"
    )
    """What a table shows when it is not told which."""


class Retrieval(Protocol):
    """Images find captions, captions find images, in the joint space."""

    name = "retrieval"
    title = "Retrieval"
    metric_labels: ClassVar[Mapping[str, str]] = {
        "image_to_text_recall@1": "I→T R@1",
        "text_to_image_recall@1": "T→I R@1",
    }
    table_columns = ("image_to_text_recall@1", "text_to_image_recall@1")
    settings_model: ClassVar[type[Declaration]] = Settings
    needs_text = True
    expected_seconds = 4.0

    def preset_version(self, task: TaskDeclaration) -> int:
        """Version of the preset."""
        return PRESET_VERSION

    def data_fingerprint(self, task: TaskDeclaration, workspace: Workspace) -> str:
        """Only the test split is looked at."""
        return open_split(task, "test", workspace).fingerprint

    def texts(self, context: ProtocolContext) -> list[str]:
        """All captions, image by image, with the preset's prefix."""
        prefix = PREFIXES[context.settings.preset]
        return [prefix + caption for of_image in self._captions(context) for caption in of_image]

    @staticmethod
    def _captions(context: ProtocolContext) -> list[list[str]]:
        """The captions of each image that are kept."""
        kept = context.settings.captions_per_image
        return [of_image[:kept] for of_image in context.dataset("test").need_captions()]

    def run(self, context: ProtocolContext) -> Measurement:
        """Rank both ways on the test split.

        Raises:
            ConfigError: The backbone has no text tower, or the data no captions.
            DataError: The data is missing or broken.
        """
        settings: Settings = context.settings
        dataset = context.dataset("test")
        captions = self._captions(context)
        owner = [image for image, of_image in enumerate(captions) for _ in of_image]
        of_image = matches_of(owner, len(captions))
        prefix = PREFIXES[settings.preset]
        texts = context.features.texts(
            context.backbone, self.texts(context), progress=context.progress
        ).to(context.device)  # [T, P]
        features = context.features.images(context.backbone, dataset, progress=context.progress)
        assert features.joint is not None
        images = features.joint.to(context.device)  # [I, P]
        image_ranks, text_ranks = retrieval_ranks(
            images,
            texts,
            owner,
            progress=lambda done, total: context.progress("ranks of pairs", done, total),
        )
        return Measurement(
            metrics=_metrics(image_ranks, text_ranks, of_image, len(owner)),
            primary_metric=settings.metric,
            outcomes=_outcomes(image_ranks, text_ranks, dataset.sample_ids, owner),
            preset=settings.preset,
            preset_version=PRESET_VERSION,
            details={
                "num_images": len(captions),
                "num_texts": len(owner),
                "captions_per_image": settings.captions_per_image,
                "prefix": prefix,
                "ties": _tie_details(image_ranks, text_ranks),
                "ranks": _rank_details(image_ranks, text_ranks),
                "transform": context.backbone.transform_id,
                "data": dataset.fingerprint,
            },
        )


def matches_of(owner: Sequence[int], num_images: int) -> list[list[int]]:
    """Texts of each image, from the image of each text.

    Example:
        >>> matches_of([0, 0, 1], 2)
        [[0, 1], [2]]
    """
    texts: list[list[int]] = [[] for _ in range(num_images)]
    for text, image in enumerate(owner):
        texts[image].append(text)
    return texts


def _metrics(
    image_ranks: Ranks,
    text_ranks: Ranks,
    of_image: list[list[int]],
    num_texts: int,
) -> dict[str, Metric]:
    num_images = len(of_image)
    metrics: dict[str, Metric] = {}
    for k in KS:
        metrics[f"{IMAGE_TO_TEXT}@{k}"] = Metric(
            float(image_ranks.hits(k).mean()),
            chance_level=retrieval_chance([len(texts) for texts in of_image], num_texts, k),
        )
        metrics[f"{TEXT_TO_IMAGE}@{k}"] = Metric(
            float(text_ranks.hits(k).mean()), chance_level=retrieval_chance([1], num_images, k)
        )
    both = [metrics[f"{direction}@1"] for direction in (IMAGE_TO_TEXT, TEXT_TO_IMAGE)]
    metrics["mean_recall@1"] = Metric(
        sum(metric.value for metric in both) / 2,
        chance_level=sum(metric.chance_level or 0.0 for metric in both) / 2,
        statistic="mean_of_columns",
        columns=(f"{IMAGE_TO_TEXT}@1", f"{TEXT_TO_IMAGE}@1"),
    )
    return metrics


def _outcomes(
    image_ranks: Ranks,
    text_ranks: Ranks,
    image_ids: Sequence[str],
    owner: Sequence[int],
) -> pd.DataFrame:
    """One row a query: first the images, then the texts; an image and its texts are one group."""
    nothing = {
        IMAGE_TO_TEXT: np.full(len(owner), np.nan),
        TEXT_TO_IMAGE: np.full(len(image_ids), np.nan),
    }
    columns: dict[str, object] = {
        "sample_id": [
            *(f"image:{image}" for image in image_ids),
            *(f"text:{index}:{image_ids[image]}" for index, image in enumerate(owner)),
        ],
        "group": [*image_ids, *(image_ids[image] for image in owner)],
    }
    for k in KS:
        columns[f"{IMAGE_TO_TEXT}@{k}"] = np.concatenate(
            [image_ranks.hits(k), nothing[IMAGE_TO_TEXT]]
        )
        columns[f"{TEXT_TO_IMAGE}@{k}"] = np.concatenate(
            [nothing[TEXT_TO_IMAGE], text_ranks.hits(k)]
        )
    return pd.DataFrame(columns)


def _rank_details(image_ranks: Ranks, text_ranks: Ranks) -> dict[str, dict[str, float]]:
    """Mean and median position of the first right answer, counted from 1, ties in random order."""
    return {
        direction: {"mean": float(ranks.mean()), "median": float(np.median(ranks))}
        for direction, ranks in (
            ("image_to_text", image_ranks.expected()),
            ("text_to_image", text_ranks.expected()),
        )
    }


def _tie_details(image_ranks: Ranks, text_ranks: Ranks) -> dict[str, dict[str, float]]:
    """What the recalls would be if all ties fell in favour of, or against, the right answer."""
    details: dict[str, dict[str, float]] = {}
    for direction, ranks in ((IMAGE_TO_TEXT, image_ranks), (TEXT_TO_IMAGE, text_ranks)):
        tied = torch.from_numpy(ranks.tied) > 0
        details[direction] = {"tied_queries": float(tied.double().mean())}
        for k in KS:
            details[direction][f"optimistic@{k}"] = float(ranks.optimistic_hits(k).mean())
            details[direction][f"pessimistic@{k}"] = float(ranks.pessimistic_hits(k).mean())
    return details
