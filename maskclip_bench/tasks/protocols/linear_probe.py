"""Linear probe: logistic regression on frozen features, its penalty chosen on held-out images.

The presets train on features that were computed once, so none of them augments. The recipes that do
(SLIP's and MAE's) need a pass through the backbone every epoch and are another protocol,
`augmented_linear_probe`: its numbers are not comparable to these.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from maskclip_bench.config import Declaration
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError
from maskclip_bench.progress import Progress
from maskclip_bench.results.measurement import Measurement
from maskclip_bench.runtime import derive_seed
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.features import identity_of
from maskclip_bench.tasks.metrics import Integers, label_ranks
from maskclip_bench.tasks.protocols.base import Protocol, ProtocolContext
from maskclip_bench.tasks.protocols.classification import (
    CLASSIFICATION_LABELS,
    ClassificationMetric,
    classification_result,
)
from maskclip_bench.tasks.protocols.logistic import LinearClassifier, LogisticSolver
from maskclip_bench.unit_vectors import unit_vectors


@dataclass(frozen=True)
class Preset:
    """One way to fit the probe.

    Attributes:
        version: Raised when the preset changes its meaning.
        feature_point: "backbone" or "joint" (see `backbones.encoders`).
        grid: Values of C, as in scikit-learn.
        search: "bisect" tries every 16th value, then the neighbours of the best at steps of 8, 4,
            2, 1; "all" tries all; "none" has nothing to choose.
        held_out: Share of each class's train images held out for the search, if the data set has no
            validation split.
    """

    version: int
    feature_point: Literal["backbone", "joint"]
    grid: tuple[float, ...]
    search: Literal["bisect", "all", "none"]
    held_out: float = 0.0


PRESETS = {
    "clip_logistic": Preset(4, "backbone", tuple(np.logspace(-6, 6, 96)), "bisect", 0.2),
    "clip_readme_logistic": Preset(4, "joint", (0.316,), "none"),
    "dinov2_logistic": Preset(4, "backbone", tuple(10 ** np.linspace(-6, 5, 45)), "all", 0.1),
}
"""clip_logistic: CLIP's paper. Features before the projection, not normalised; C from 96 values
between 1e-6 and 1e6 found by bisection on validation images, then fitted again on all.
clip_readme_logistic: the example of CLIP's README, C = 0.316 on the (normalised) joint embeddings.
dinov2_logistic: DINOv2's grid of 45 values; 10 % of train is held out if there is no validation
split. Versions 2: the final fit is solved to the optimum on separable features, too; 3 and 4:
where 1,000 steps of L-BFGS did not reach it, and in the search for C."""

BISECT_STRIDE = 16

ROWS_AT_A_TIME = 65_536
"""Images whose features are in memory in float64 at a time."""

SCALE = "features_multiplied_by"
"""Of the details of a record: see `scale_of`; absent where it is 1."""

USUAL_SPREAD = (1e-3, 1e3)
"""Root mean square of centred features for which the grids of C are made."""


class Settings(Declaration):
    """`protocols: {linear_probe: ...}` of a data set."""

    preset: Literal["clip_logistic", "clip_readme_logistic", "dinov2_logistic"] = "clip_logistic"
    """How the probe is fitted."""
    metric: ClassificationMetric = "top1_accuracy"
    """What the data set is reported with."""


class LinearProbe(Protocol):
    """A linear classifier on frozen features."""

    name = "linear_probe"
    title = "Linear probe"
    metric_labels = CLASSIFICATION_LABELS
    settings_model: ClassVar[type[Declaration]] = Settings
    expected_seconds = 8.0

    def needs_text_tower(self, task: TaskDeclaration) -> bool:
        """Presets on joint embeddings do."""
        return PRESETS[self.settings_of(task).preset].feature_point == "joint"

    def preset_version(self, task: TaskDeclaration) -> int:
        """Version of the preset."""
        return PRESETS[self.settings_of(task).preset].version

    def run(self, context: ProtocolContext) -> Measurement:
        """Fit on train (and validation), score on test.

        Raises:
            ConfigError: The preset needs joint embeddings and the backbone has none.
            DataError: The data is missing or broken.
        """
        settings: Settings = context.settings
        preset = PRESETS[settings.preset]
        test = context.dataset("test")
        classifier, details = self._probe(context, settings.preset, preset)
        features = self._features(context, preset, test, _scale_in(details))
        scores = classifier(features.to(context.device))  # [N, C]
        classes = np.arange(scores.shape[1], dtype=np.int64)
        result = classification_result(
            scores,
            test,
            classes=classes,
            primary=settings.metric,
            probabilities=scores.softmax(dim=1),
        )
        return Measurement(
            metrics=result.metrics,
            primary_metric=settings.metric,
            outcomes=result.outcomes,
            preset=settings.preset,
            preset_version=preset.version,
            details={
                **details,
                "num_images": len(test),
                "num_classes": len(classes),
                "feature_point": preset.feature_point,
                "feature_point_is": context.backbone.feature_point,
                "normalized": preset.feature_point == "joint",
                "augmentation": "none",
                "transform": context.backbone.transform_id,
            },
        )

    def _probe(
        self, context: ProtocolContext, name: str, preset: Preset
    ) -> tuple[LinearClassifier, dict[str, Any]]:
        """The fitted probe, from the store if the same one was fitted for another test split."""
        train = context.dataset("train")
        num_classes = self._num_classes(context)
        validation = "validation" in context.task.splits
        fingerprints = [train.fingerprint]
        if validation:
            fingerprints.append(context.dataset("validation").fingerprint)
        scale = self._scale(context, preset, train)
        scaled = {} if scale == 1 else {SCALE: scale}
        details: dict[str, Any] = {
            "num_train": len(train),
            "search_on": "validation split" if validation else f"{preset.held_out:.0%} of train",
            "refit_on": "train and validation" if preset.search != "none" else "train",
            "data": fingerprints,
            **scaled,
        }

        def fit() -> dict[str, Tensor]:
            labels = train.need_labels()
            features = self._features(context, preset, train, scale)
            if validation:
                other = context.dataset("validation")
                labels = np.concatenate([labels, other.need_labels()])
                features = torch.cat([features, self._features(context, preset, other, scale)])
                held_out = np.arange(len(labels)) >= len(train)
            else:
                held_out = hold_out(labels, preset.held_out, seed=context.seed)
            probe, c = fit_probe(
                features.to(context.device),
                torch.from_numpy(labels).to(context.device),
                torch.from_numpy(held_out).to(context.device),
                preset,
                num_classes=num_classes,
                progress=context.progress,
            )
            facts = torch.tensor([c, probe.num_iterations, probe.converged], dtype=torch.float64)
            return {"weight": probe.weight.cpu(), "bias": probe.bias.cpu(), "facts": facts}

        stored = context.features.get(
            {
                **identity_of(context.backbone),
                "transform": context.backbone.transform_id,
                "probe": asdict(preset),
                "num_classes": num_classes,
                "seed": context.seed,
                "data": fingerprints,
                **scaled,
            },
            fit,
            note=f"{context.backbone.row_id}, {name} probe of {train.name}",
        )
        c, num_iterations, converged = stored["facts"].tolist()
        probe = LinearClassifier(
            weight=stored["weight"].to(context.device),
            bias=stored["bias"].to(context.device),
            num_iterations=int(num_iterations),
            converged=bool(converged),
        )
        found = {"C": c, "num_iterations": probe.num_iterations, "converged": probe.converged}
        return probe, {**details, **found}

    @classmethod
    def _scale(cls, context: ProtocolContext, preset: Preset, train: Dataset) -> float:
        if preset.feature_point == "joint":
            return 1.0
        return scale_of(cls._features(context, preset, train))

    @staticmethod
    def _num_classes(context: ProtocolContext) -> int:
        splits = [context.dataset("train"), *map(context.dataset, sorted(context.task.splits))]
        return 1 + max(int(split.need_labels().max()) for split in splits)

    @staticmethod
    def _features(
        context: ProtocolContext, preset: Preset, dataset: Dataset, scale: float = 1.0
    ) -> Tensor:
        features = context.features.images(context.backbone, dataset, progress=context.progress)
        if preset.feature_point == "backbone":
            if scale == 1:
                return features.backbone
            return (features.backbone.double() * scale).float()
        assert features.joint is not None  # `needs_text_tower` was asked
        return unit_vectors(features.joint)


def linear_probe_scores(
    context: ProtocolContext, dataset: Dataset, preset: str = "clip_logistic"
) -> Tensor:
    """Logits [N, C] of a split by the probe of the task's train (and validation) split.

    Raises:
        DataError: The data is missing or broken.
    """
    classifier, details = LinearProbe()._probe(context, preset, PRESETS[preset])
    features = LinearProbe._features(context, PRESETS[preset], dataset, _scale_in(details))
    return classifier(features.to(context.device))


def scale_of(features: Tensor) -> float:
    """A power of two by which features of an unusual scale get a spread of about 1; else 1.

    The grid of C is one of features whose spread is about 1. C means as much as the square of the
    scale, so that with a spread of 1e-8 every C of the grid would forbid any weight, and all models
    would score as if they guessed.

    Args:
        features: [N, D], of the training split.
    """
    mean = features.mean(dim=0, dtype=torch.float64)
    squares = sum(
        float((part.double() - mean).square().sum()) for part in features.split(ROWS_AT_A_TIME)
    )
    spread = math.sqrt(squares / features.numel())
    if spread == 0 or USUAL_SPREAD[0] <= spread <= USUAL_SPREAD[1]:
        return 1.0
    return float(2.0 ** -round(math.log2(spread)))


def _scale_in(details: dict[str, Any]) -> float:
    return float(details.get(SCALE, 1.0))


def hold_out(labels: Integers, share: float, *, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A random share of each class, at least one image where a class has two; bool [N]."""
    held_out = np.zeros(len(labels), dtype=bool)
    if share == 0:
        return held_out
    generator = np.random.default_rng(derive_seed(seed, "linear_probe", "hold_out"))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        number = max(round(share * len(members)), 1) if len(members) > 1 else 0
        held_out[members[:number]] = True
    return held_out


def fit_probe(
    features: Tensor,
    labels: Tensor,
    held_out: Tensor,
    preset: Preset,
    *,
    num_classes: int,
    progress: Progress,
) -> tuple[LinearClassifier, float]:
    """Choose C on the held-out images, then fit on all of them.

    Args:
        features: [N, D].
        labels: int64 [N].
        held_out: bool [N]; True = only for choosing C.
        preset: What to try.
        num_classes: C, the number of classes.
        progress: Told about the search.

    Returns:
        The probe, and its C.

    Raises:
        DataError: There is no image to choose C with.
        NonFiniteError: Features are NaN or infinite.
    """
    c, start = preset.grid[0], None
    if preset.search != "none":
        if not bool(held_out.any()) or bool(held_out.all()):
            raise DataError(
                f"linear_probe chooses its penalty on held-out images, and of {len(labels)} "
                f"images {int(held_out.sum())} can be held out. Give two train images of a class, "
                "a validation split, or a larger limit where there is one; or use preset "
                "clip_readme_logistic, which chooses none."
            )
        solver = LogisticSolver(features[~held_out], labels[~held_out], num_classes)
        c = _search(solver, features[held_out], labels[held_out], preset, progress)
        start = solver.fit(c, exact=False)
    solver = LogisticSolver(features, labels, num_classes, start=start)
    progress("fitting the probe", 0, 1)
    probe = solver.fit(c)
    progress("fitting the probe", 1, 1)
    return probe, c


def _search(
    solver: LogisticSolver,
    features: Tensor,
    labels: Tensor,
    preset: Preset,
    progress: Progress,
) -> float:
    """The C of the grid with the best held-out accuracy; of equal ones the smallest."""
    accuracy: dict[int, float] = {}

    def score(index: int) -> None:
        if 0 <= index < len(preset.grid) and index not in accuracy:
            classifier = solver.fit(preset.grid[index], exact=False)
            accuracy[index] = float(label_ranks(classifier(features), labels).hits(1).mean())
            progress("choosing the penalty", len(accuracy), total)

    def best() -> int:
        return max(accuracy, key=lambda index: (accuracy[index], -index))

    if preset.search == "all":
        total = len(preset.grid)
        for index in range(total):
            score(index)
        return preset.grid[best()]
    coarse = [*range(0, len(preset.grid), BISECT_STRIDE), len(preset.grid) - 1]
    total = len(coarse) + 8
    for index in coarse:
        score(index)
    stride = BISECT_STRIDE // 2
    while stride:
        around = best()
        score(around - stride)
        score(around + stride)
        stride //= 2
    return preset.grid[best()]
