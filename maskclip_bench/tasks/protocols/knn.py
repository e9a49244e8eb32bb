"""kNN on frozen features: neighbours vote with exp(cosine / T) (DINO's evaluation)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from maskclip_bench.config import Declaration
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.metrics import Candidates, label_ranks
from maskclip_bench.tasks.protocols.base import Protocol, ProtocolContext
from maskclip_bench.tasks.protocols.classification import (
    CLASSIFICATION_LABELS,
    ClassificationMetric,
    classification_result,
)
from maskclip_bench.unit_vectors import unit_vectors

PRESET_VERSION = 2
"""2: classes with equal votes share the top positions."""
NUM_NEIGHBORS = (10, 20, 100, 200)
PRIMARY_NUM_NEIGHBORS = 20
"""The one DINO publishes."""
TEMPERATURE = 0.07
NARROW = 1e-4
"""Spread of unit vectors (1 less the square of their mean's length) below which float32, that knows
cosines to about 1e-7, cannot tell which of them are near; they are then compared in float64."""
BLOCK_ELEMENTS = 1 << 27
"""Similarities in memory at a time: half a gigabyte."""


class Settings(Declaration):
    """`protocols: {knn: ...}` of a data set."""

    preset: Literal["dino_knn"] = "dino_knn"
    """dino_knn: L2-normalised backbone features, k of 10, 20, 100, 200, temperature 0.07."""
    metric: ClassificationMetric = "top1_accuracy"
    """What the data set is reported with, at 20 neighbours."""


def vote(
    test: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    num_neighbors: tuple[int, ...],
    temperature: float = TEMPERATURE,
) -> dict[int, Tensor]:
    """Class scores of test features from their nearest neighbours in a bank.

    Where more features of the bank than there are positions left have the same similarity, they
    share these positions, so that the order of the bank never decides.

    Args:
        test: [N, D], L2-normalised.
        bank: [M, D], L2-normalised.
        labels: int64 [M], of the bank.
        num_classes: C.
        num_neighbors: Values of k; none above M.
        temperature: T of exp(cosine / T).

    Returns:
        k -> [N, C].

    Raises:
        NonFiniteError: Features are NaN or infinite.
    """
    candidates = Candidates(bank)
    scores: dict[int, list[Tensor]] = {k: [] for k in num_neighbors}
    largest = min(max(num_neighbors) + 1, len(bank))
    for part in test.split(max(1, BLOCK_ELEMENTS // len(bank))):
        all_similarities = candidates.scores(part)  # [B, M]
        similarity, index = all_similarities.topk(largest, dim=1)
        weights = (similarity / temperature).exp()
        votes = labels[index]
        for k in num_neighbors:
            block = torch.zeros(len(part), num_classes, device=part.device, dtype=weights.dtype)
            block.scatter_add_(1, votes[:, :k], weights[:, :k])
            if k < largest:
                cut = (similarity[:, k - 1] == similarity[:, k]).nonzero()[:, 0]  # ties at the end
                if len(cut):
                    shares = _shared(all_similarities[cut], similarity[cut, k - 1], k)
                    weights_of_all = shares * (all_similarities[cut] / temperature).exp()
                    block[cut] = torch.zeros_like(block[cut]).scatter_add_(
                        1, labels.expand(len(cut), -1), weights_of_all
                    )
            scores[k].append(block)
    return {k: torch.cat(parts) for k, parts in scores.items()}


def _shared(similarity: Tensor, last: Tensor, k: int) -> Tensor:
    """How much each of the bank counts among the k neighbours, [B, M], from 0 to 1.

    Those whose similarity is `last` [B], the k-th, share the positions that are left.
    """
    nearer, level = similarity > last[:, None], similarity == last[:, None]
    left = k - nearer.sum(dim=1, keepdim=True)
    return nearer + level * (left / level.sum(dim=1, keepdim=True))


def is_narrow(bank: Tensor) -> bool:
    """Whether unit vectors [M, D] differ too little for cosines in float32; see `NARROW`."""
    mean = bank.mean(dim=0, dtype=torch.float64 if bank.device.type != "mps" else None)
    return 1 - float(mean @ mean) < NARROW


class KNN(Protocol):
    """k nearest neighbours in the train split."""

    name = "knn"
    title = "kNN"
    metric_labels = CLASSIFICATION_LABELS
    settings_model: ClassVar[type[Declaration]] = Settings
    expected_seconds = 1.0

    def preset_version(self, task: TaskDeclaration) -> int:
        """Version of the preset."""
        return PRESET_VERSION

    def run(self, context: ProtocolContext) -> Measurement:
        """Classify the test split by the train split.

        Raises:
            DataError: The data is missing or broken.
        """
        settings: Settings = context.settings
        train, test = context.dataset("train"), context.dataset("test")
        labels = train.need_labels()
        num_classes = int(max(labels.max(), test.need_labels().max())) + 1
        bank, queries = (self._features(context, split) for split in ("train", "test"))
        if is_narrow(bank):
            bank, queries = (
                self._features(context, split, dtype=torch.float64) for split in ("train", "test")
            )
        num_neighbors = tuple(sorted({min(k, len(bank)) for k in NUM_NEIGHBORS}))
        primary = min(PRIMARY_NUM_NEIGHBORS, len(bank))
        scores = vote(
            queries,
            bank,
            torch.from_numpy(labels).to(bank.device),
            num_classes=num_classes,
            num_neighbors=num_neighbors,
        )
        classes = np.arange(num_classes, dtype=np.int64)
        votes = scores[primary].double()
        result = classification_result(
            scores[primary],
            test,
            classes=classes,
            primary=settings.metric,
            probabilities=votes / votes.sum(dim=1, keepdim=True),
        )
        metrics, outcomes = dict(result.metrics), result.outcomes
        truth = torch.from_numpy(test.need_labels()).to(bank.device)
        for k in num_neighbors:
            if k != primary:
                name = f"top1_accuracy_k{k}"
                outcomes[name] = label_ranks(scores[k], truth).hits(1)
                metrics[name] = Metric(
                    float(outcomes[name].mean()), chance_level=metrics["top1_accuracy"].chance_level
                )
        return Measurement(
            metrics=metrics,
            primary_metric=settings.metric,
            outcomes=outcomes,
            preset=settings.preset,
            preset_version=PRESET_VERSION,
            details={
                "num_neighbors": primary,
                "temperature": TEMPERATURE,
                "num_train": len(train),
                "num_images": len(test),
                "num_classes": num_classes,
                "feature_point": context.backbone.feature_point,
                "normalized": True,
                "transform": context.backbone.transform_id,
                "data": {"train": train.fingerprint, "test": test.fingerprint},
            },
        )

    @staticmethod
    def _features(
        context: ProtocolContext, split: str, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Backbone features of a split, L2-normalised, on the device (MPS knows no float64)."""
        features = context.features.images(
            context.backbone, context.dataset(split), progress=context.progress
        )
        exact_on_cpu = dtype == torch.float64 and context.device.type == "mps"
        device = torch.device("cpu") if exact_on_cpu else context.device
        return unit_vectors(features.backbone.to(device, dtype))
