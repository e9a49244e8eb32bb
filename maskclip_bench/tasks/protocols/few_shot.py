"""Few-shot classification: ridge regression on a handful of frozen features a class.

Closed form, so that many draws cost little. Targets are +1 for the class and -1 elsewhere; features
are L2-normalised and centred. The penalty is the one with the best leave-one-out accuracy on the
shots themselves, which for ridge needs no refitting: residual / (1 - leverage). (The least squared
error would choose to predict "-1" for every class.) No image beyond the shots is looked at.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip_bench.config import Declaration
from maskclip_bench.errors import DataError
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.runtime import derive_seed
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.metrics import Floats, Integers, check_finite, label_ranks
from maskclip_bench.tasks.protocols.base import Protocol, ProtocolContext

PRESET_VERSION = 1
SHOTS = (1, 2, 5, 10, 25)
"""Images of each class; the larger numbers only where every class has that many."""
NUM_DRAWS = 5
PENALTIES = tuple(float(value) for value in np.logspace(-6, 1, 15))
"""Relative to the summed variance of the features."""


class Settings(Declaration):
    """`protocols: {few_shot: ...}` of a data set."""

    preset: Literal["ridge_leave_one_out"] = "ridge_leave_one_out"
    """Ridge regression, penalty by leave-one-out accuracy; up to 25 shots, mean of 5 draws."""
    shots: int = 5
    """The number of shots that a table shows when it is not told which."""


class FewShot(Protocol):
    """Learning from k images a class."""

    name = "few_shot"
    title = "Few-shot"
    settings_model: ClassVar[type[Declaration]] = Settings
    expected_seconds = 1.0

    def preset_version(self, task: TaskDeclaration) -> int:
        """Version of the preset."""
        return PRESET_VERSION

    def run(self, context: ProtocolContext) -> Measurement:
        """Fit on draws from train, score on test.

        An outcome is the share of the draws under which an image is classified rightly.

        Raises:
            DataError: Some class has too few train images for the declared number of shots.
        """
        settings: Settings = context.settings
        train, test = context.dataset("train"), context.dataset("test")
        labels, truth = train.need_labels(), torch.from_numpy(test.need_labels())
        num_classes = int(max(labels.max(), int(truth.max()))) + 1
        smallest = int(np.bincount(labels, minlength=num_classes).min())
        shots = [k for k in SHOTS if k <= smallest]
        if settings.shots not in shots:
            raise DataError(
                f"{train.name}: few_shot wants {settings.shots} train images of every class; the "
                f"smallest class has {smallest}. Set shots to one of {shots or 'none'}."
            )
        bank, queries = self._features(context, "train"), self._features(context, "test")
        outcomes = pd.DataFrame({"sample_id": test.sample_ids, "group": test.groups})
        spread: dict[str, list[float]] = {}
        for done, k in enumerate(shots):
            context.progress("drawing shots", done, len(shots))
            hits = [
                self._hits(bank, labels, queries, truth, num_classes, k, seed=(context.seed, draw))
                for draw in range(NUM_DRAWS)
            ]
            outcomes[metric_name(k)] = np.mean(hits, axis=0)
            spread[metric_name(k)] = [float(hit.mean()) for hit in hits]
        return Measurement(
            metrics={
                name: Metric(float(outcomes[name].mean()), chance_level=1 / num_classes)
                for name in spread
            },
            primary_metric=metric_name(settings.shots),
            outcomes=outcomes,
            preset=settings.preset,
            preset_version=PRESET_VERSION,
            details={
                "by_draw": spread,
                "num_images": len(test),
                "num_classes": num_classes,
                "feature_point": context.backbone.feature_point,
                "normalized": True,
                "transform": context.backbone.transform_id,
                "data": {"train": train.fingerprint, "test": test.fingerprint},
            },
        )

    @staticmethod
    def _features(context: ProtocolContext, split: str) -> Tensor:
        features = context.features.images(
            context.backbone, context.dataset(split), progress=context.progress
        )
        return F.normalize(features.backbone, dim=-1)

    @staticmethod
    def _hits(
        bank: Tensor,
        labels: Integers,
        queries: Tensor,
        truth: Tensor,
        num_classes: int,
        k: int,
        *,
        seed: tuple[int, int],
    ) -> Floats:
        chosen = draw_shots(labels, k, seed=derive_seed(seed[0], "few_shot", k, seed[1]))
        weight, bias = fit_ridge(
            bank[chosen], torch.from_numpy(labels[chosen]), num_classes=num_classes
        )
        return label_ranks(queries.double() @ weight + bias, truth).hits(1)


def metric_name(shots: int) -> str:
    """Name of the metric: `top1_accuracy_5_shots`."""
    return f"top1_accuracy_{shots}_shot{'s' if shots > 1 else ''}"


def draw_shots(labels: Integers, k: int, *, seed: int) -> Integers:
    """Indices of `k` random images of every class, int64 [k * C]."""
    generator = np.random.default_rng(seed)
    return np.concatenate(
        [generator.permutation(np.flatnonzero(labels == label))[:k] for label in np.unique(labels)]
    ).astype(np.int64)


def fit_ridge(features: Tensor, labels: Tensor, *, num_classes: int) -> tuple[Tensor, Tensor]:
    """Ridge regression onto +1 / -1 targets, penalty by leave-one-out accuracy.

    Of equally accurate penalties the smallest is taken.

    Args:
        features: [N, D].
        labels: int64 [N].
        num_classes: C.

    Returns:
        Weight [D, C] and bias [C], float64; the weight is 0 where all features are equal.

    Raises:
        NonFiniteError: Features are NaN or infinite.
    """
    check_finite(features, "features")
    features = features.double()
    targets = 2 * F.one_hot(labels, num_classes).double() - 1  # [N, C]
    mean, target_mean = features.mean(dim=0), targets.mean(dim=0)
    if bool((features == features[0]).all()):  # without variance there is nothing to fit
        return features.new_zeros(features.shape[1], num_classes), target_mean
    u, s, vt = torch.linalg.svd(features - mean, full_matrices=False)  # [N, R], [R], [R, D]
    rotated = u.T @ (targets - target_mean)  # [R, C]
    penalties = [relative * float((s**2).sum()) for relative in PENALTIES]
    best, best_accuracy = penalties[0], -1.0
    for penalty in penalties:
        shrink = s**2 / (s**2 + penalty)  # [R]
        residual = targets - target_mean - u @ (shrink[:, None] * rotated)  # [N, C]
        leverage = (u**2 @ shrink) + 1 / len(features)  # [N]
        left_out = targets - residual / (1 - leverage).clamp_min(1e-9)[:, None]
        accuracy = float(label_ranks(left_out, labels).hits(1).mean())
        if accuracy > best_accuracy:
            best, best_accuracy = penalty, accuracy
    weight = vt.T @ ((s / (s**2 + best))[:, None] * rotated)  # [D, C]
    return weight, target_mean - mean @ weight
