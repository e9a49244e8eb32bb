"""Few-shot classification on a handful of frozen features a class.

`ridge_leave_one_out`: ridge regression in closed form, so that many draws cost little. Targets are
+1 for the class and -1 elsewhere; features are L2-normalised and centred. The penalty is the one
with the best leave-one-out accuracy on the shots themselves, which for ridge needs no refitting:
residual / (1 - leverage). (The least squared error would choose to predict "-1" for every class.)
No image beyond the shots is looked at.

Two presets of others, whose published numbers they may stand beside:

- `big_vision_ridge` (`big_vision/evaluators/fewshot_lsr.py`, the few-shot columns of SigLIP and
  others): pre-logits whitened by the shots, a constant feature of 100 for the bias, the fixed
  penalty 1024; mean of the draws with seeds 0, 1, 2.
- `clip_benchmark_probe` (LAION-AI/CLIP_benchmark, `linear_probe.py` with `fewshot_k`): a linear
  layer on normalised joint embeddings, AdamW at 0.1 without weight decay, 10 epochs of batches of
  64, half a cosine; one draw there, the mean of 3 here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip_bench.config import Declaration
from maskclip_bench.errors import DataError
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.runtime import derive_seed
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.metrics import Floats, Integers, check_finite, label_ranks
from maskclip_bench.tasks.protocols.base import Protocol, ProtocolContext
from maskclip_bench.training.optim import set_learning_rate
from maskclip_bench.training.schedule import learning_rate
from maskclip_bench.unit_vectors import unit_vectors

PENALTIES = tuple(float(value) for value in np.logspace(-6, 1, 15))
"""Relative to the summed variance of the features."""


BIG_VISION_PENALTY = 1024.0
BIG_VISION_BIAS = 100.0
BIG_VISION_EPS = 1e-5

PROBE_LR = 0.1
PROBE_EPOCHS = 10
PROBE_BATCH = 64

Fit = Callable[..., tuple[Tensor, Tensor]]
"""(features [N, D], labels, num_classes=C, seed=...) -> weight [D, C], bias [C]; float64."""


@dataclass(frozen=True)
class Preset:
    """One way to learn from shots.

    Attributes:
        fit: From the shots to a classifier.
        shots: Images of each class; the larger numbers only where every class has that many.
        num_draws: Of the shots.
        feature_point: "backbone" or "joint".
        normalized: Whether features are L2-normalised.
        own_seeds: Whether the shots of draw d are those of NumPy's generator of seed d.
        version: Raised when the preset changes its meaning.
    """

    fit: Fit
    shots: tuple[int, ...]
    num_draws: int
    feature_point: Literal["backbone", "joint"] = "backbone"
    normalized: bool = True
    own_seeds: bool = False
    version: int = 1


class Settings(Declaration):
    """`protocols: {few_shot: ...}` of a data set."""

    preset: Literal["ridge_leave_one_out", "big_vision_ridge", "clip_benchmark_probe"] = (
        "ridge_leave_one_out"
    )
    """How the shots are learnt from."""
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
        return PRESETS[self.settings_of(task).preset].version

    def needs_text_tower(self, task: TaskDeclaration) -> bool:
        """Presets on joint embeddings do."""
        return PRESETS[self.settings_of(task).preset].feature_point == "joint"

    def run(self, context: ProtocolContext) -> Measurement:
        """Fit on draws from train, score on test.

        An outcome is the share of the draws under which an image is classified rightly.

        Raises:
            DataError: Some class has too few train images for the declared number of shots.
        """
        settings: Settings = context.settings
        preset = PRESETS[settings.preset]
        train, test = context.dataset("train"), context.dataset("test")
        labels, truth = train.need_labels(), torch.from_numpy(test.need_labels())
        num_classes = int(max(labels.max(), int(truth.max()))) + 1
        smallest = int(np.bincount(labels, minlength=num_classes).min())
        shots = [k for k in preset.shots if k <= smallest]
        if settings.shots not in shots:
            found = ", ".join(map(str, shots))
            remedy = f"Set shots to one of {found}" if shots else "Add images, or remove the class"
            if context.limit is not None:
                remedy = f"Use a larger limit than {context.limit}"
            raise DataError(
                f"{train.name}: few_shot wants {settings.shots} train images of every class; the "
                f"smallest class has {smallest}. {remedy}."
            )
        bank, queries = (self._features(context, preset, split) for split in ("train", "test"))
        outcomes = pd.DataFrame({"sample_id": test.sample_ids, "group": test.groups})
        spread: dict[str, list[float]] = {}
        for done, k in enumerate(shots):
            context.progress("drawing shots", done, len(shots))
            hits = [
                self._hits(
                    preset, bank, labels, queries, truth, num_classes, k, seed=(context.seed, draw)
                )
                for draw in range(preset.num_draws)
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
            preset_version=preset.version,
            details={
                "by_draw": spread,
                "num_images": len(test),
                "num_classes": num_classes,
                "feature_point": context.backbone.feature_point
                if preset.feature_point == "backbone"
                else preset.feature_point,
                "normalized": preset.normalized,
                "transform": context.backbone.transform_id,
                "data": {"train": train.fingerprint, "test": test.fingerprint},
            },
        )

    @staticmethod
    def _features(context: ProtocolContext, preset: Preset, split: str) -> Tensor:
        features = context.features.images(
            context.backbone, context.dataset(split), progress=context.progress
        )
        if preset.feature_point == "joint":
            assert features.joint is not None  # `needs_text_tower` was asked
            return features.joint
        return unit_vectors(features.backbone) if preset.normalized else features.backbone

    @staticmethod
    def _hits(
        preset: Preset,
        bank: Tensor,
        labels: Integers,
        queries: Tensor,
        truth: Tensor,
        num_classes: int,
        k: int,
        *,
        seed: tuple[int, int],
    ) -> Floats:
        own = derive_seed(seed[0], "few_shot", k, seed[1])
        chosen = draw_shots(labels, k, seed=seed[1] if preset.own_seeds else own)
        weight, bias = preset.fit(
            bank[chosen], torch.from_numpy(labels[chosen]), num_classes=num_classes, seed=own
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


def fit_ridge(
    features: Tensor, labels: Tensor, *, num_classes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Ridge regression onto +1 / -1 targets, penalty by leave-one-out accuracy.

    Of equally accurate penalties the smallest is taken.

    Args:
        features: [N, D].
        labels: int64 [N].
        num_classes: C.
        seed: Not used; nothing is drawn.

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


def fit_big_vision(
    features: Tensor, labels: Tensor, *, num_classes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Ridge regression with big_vision's whitening, bias and fixed penalty.

    Args:
        features: [N, D].
        labels: int64 [N].
        num_classes: C.
        seed: Not used; nothing is drawn.

    Returns:
        Weight [D, C] and bias [C], float64, for features that are not whitened.

    Raises:
        NonFiniteError: Features are NaN or infinite.
    """
    check_finite(features, "features")
    features = features.double()
    targets = 2 * F.one_hot(labels, num_classes).double() - 1  # [N, C]
    if bool((features == features[0]).all()):  # without variance there is nothing to fit
        return features.new_zeros(features.shape[1], num_classes), targets.mean(dim=0)
    mean, std = features.mean(dim=0), features.std(dim=0, unbiased=False) + BIG_VISION_EPS
    white = F.pad((features - mean) / std, (0, 1), value=BIG_VISION_BIAS)  # [N, D + 1]
    num_samples, width = white.shape
    if num_samples >= width:
        gram = white.T @ white + BIG_VISION_PENALTY * torch.eye(width, dtype=white.dtype)
        solution = torch.linalg.solve(gram, white.T @ targets)  # [D + 1, C]
    else:
        gram = white @ white.T + BIG_VISION_PENALTY * torch.eye(num_samples, dtype=white.dtype)
        solution = white.T @ torch.linalg.solve(gram, targets)
    weight = solution[:-1] / std[:, None]
    return weight, BIG_VISION_BIAS * solution[-1] - mean @ weight


def fit_clip_benchmark(
    features: Tensor, labels: Tensor, *, num_classes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """CLIP_benchmark's linear probe: AdamW on batches of 64 in random order.

    Args:
        features: [N, D].
        labels: int64 [N].
        num_classes: C.
        seed: Of the layer's first weights and of the order.

    Returns:
        Weight [D, C] and bias [C], float64; the weight is 0 where all features are equal.

    Raises:
        NonFiniteError: Features are NaN or infinite.
    """
    check_finite(features, "features")
    if bool((features == features[0]).all()):  # without variance there is nothing to fit
        weight = features.new_zeros(features.shape[1], num_classes).double()
        return weight, weight.new_zeros(num_classes)
    generator = torch.Generator().manual_seed(seed)
    bound = features.shape[1] ** -0.5  # nn.Linear's own, which the script leaves
    layer = nn.Linear(features.shape[1], num_classes)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=PROBE_LR, weight_decay=0.0)
    batches = -(-len(features) // PROBE_BATCH)
    for epoch in range(PROBE_EPOCHS):
        order = torch.randperm(len(features), generator=generator)
        for index, chosen in enumerate(order.split(PROBE_BATCH)):
            step = index + epoch * batches
            rate = learning_rate(
                step, total_steps=PROBE_EPOCHS * batches, warmup_steps=0, lr=PROBE_LR
            )
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad()
            F.cross_entropy(layer(features[chosen]), labels[chosen]).backward()
            optimizer.step()
    return layer.weight.detach().T.double(), layer.bias.detach().double()


PRESETS = {
    "ridge_leave_one_out": Preset(fit_ridge, (1, 2, 5, 10, 25), 5),
    "big_vision_ridge": Preset(fit_big_vision, (1, 5, 10, 25), 3, normalized=False, own_seeds=True),
    "clip_benchmark_probe": Preset(
        fit_clip_benchmark, (1, 2, 4, 5, 8, 16, 32), 3, feature_point="joint"
    ),
}
"""See the top of this file."""
