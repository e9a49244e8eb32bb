"""Calibration: whether a classifier is right as often as its probabilities say.

Three numbers, each once for the model's own probabilities and once after temperature scaling (Guo
et al., 2017, "On Calibration of Modern Neural Networks"):

- `expected_calibration_error`: 15 bins of equal width, on the probability of the prediction.
- `brier_score`: half the squared distance between probabilities and the truth, 0 to 1.
- `truth_probability`: the geometric mean probability of the truth, exp(-NLL), 0 to 1; the negative
  log-likelihood itself is in the details.

The probabilities are those of the zero-shot classifier (softmax of the cosines times the scale that
the model learnt), or of the logistic linear probe. The one temperature minimizes the NLL on a split
that neither trains the classifier nor is tested.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import model_validator
from scipy.optimize import minimize_scalar
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.config import Declaration
from maskclip_bench.data.class_table import same_classes
from maskclip_bench.data.readers import Dataset, open_dataset
from maskclip_bench.errors import ConfigError
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.weighted import NUM_BINS
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.metrics import (
    Floats,
    brier_scores,
    check_finite,
    expected_calibration_error,
)
from maskclip_bench.tasks.protocols.base import (
    Protocol,
    ProtocolContext,
    declared_splits,
    evenly_spaced,
)
from maskclip_bench.tasks.protocols.base import open_split as open_own_split
from maskclip_bench.tasks.protocols.classification import classification_result, columns_of
from maskclip_bench.tasks.protocols.linear_probe import linear_probe_scores
from maskclip_bench.tasks.protocols.prompts import class_names_of, logit_scale_of
from maskclip_bench.tasks.protocols.zero_shot_classification import zero_shot_scores

PRESET_VERSION = 1
HITS = "top1_accuracy"
LOGARITHM = "truth_log_probability"
TEMPERATURES = (1e-3, 1e3)
"""Where the temperature is looked for."""


class Settings(Declaration):
    """`protocols: {calibration: ...}` of a data set."""

    preset: Literal["zero_shot", "linear_probe"] = "zero_shot"
    """Whose probabilities: the zero-shot classifier's, or the linear probe's (`clip_logistic`)."""
    prompts: str | None = None
    """Prompt set of the zero-shot classifier."""
    tuned_on: str | None = None
    """Split on which the temperature is chosen, in the data set's own words. None: of the zero-shot
    classifier the split `validation`, or else `train`, which it has not seen."""

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if (self.prompts is None) == (self.preset == "zero_shot"):
            raise ValueError("prompts go with preset zero_shot, which needs them")
        if self.preset == "linear_probe" and self.tuned_on is None:
            raise ValueError(
                "tuned_on: a probe is fitted on train and validation, so its temperature needs a "
                "split of its own"
            )
        return self


class Calibration(Protocol):
    """ECE, Brier score and likelihood, before and after temperature scaling."""

    name = "calibration"
    title = "Calibration"
    metric_labels: ClassVar[dict[str, str]] = {
        "expected_calibration_error": "ECE",
        "expected_calibration_error_tempered": "ECE, tempered",
        "brier_score": "Brier",
        "brier_score_tempered": "Brier, tempered",
        "truth_probability": "exp(-NLL)",
        "truth_probability_tempered": "exp(-NLL), tempered",
    }
    table_columns = ("expected_calibration_error", "expected_calibration_error_tempered")
    settings_model: ClassVar[type[Declaration]] = Settings
    expected_seconds = 2.0

    def preset_version(self, task: TaskDeclaration) -> int:
        """Version of the preset."""
        return PRESET_VERSION

    def needs_text_tower(self, task: TaskDeclaration) -> bool:
        """The zero-shot classifier does."""
        return self.settings_of(task).preset == "zero_shot"

    def data_fingerprint(self, task: TaskDeclaration, workspace: Workspace) -> str:
        """Hash of the splits that are tested, trained and tuned on.

        Raises:
            ConfigError: The data set has no such split.
            DataError: The data is missing or broken.
        """
        probe = self.settings_of(task).preset == "linear_probe"
        ours: list[str] = sorted(task.splits) if probe else ["test"]
        parts = {split: open_own_split(task, split, workspace).fingerprint for split in ours}
        parts["tuned_on"] = self._tuned_on(task, workspace).fingerprint
        return storage.fingerprint(parts)

    def run(self, context: ProtocolContext) -> Measurement:
        """Choose the temperature, then score the test split.

        Raises:
            ConfigError: The backbone has no text tower, or the temperature would be chosen on a
                split that is tested or trained on.
            DataError: The data is missing or broken.
        """
        settings: Settings = context.settings
        test = context.dataset("test")
        held_out = self._tuned_on(context.task, context.workspace)
        same_classes(test, held_out)
        self._check_unseen(context.task, settings, held_out)
        if context.limit is not None:
            held_out = held_out.take(evenly_spaced(len(held_out), context.limit))
        logits, truth = self._logits(context, test)
        temperature = fit_temperature(*self._logits(context, held_out))
        classes = np.arange(logits.shape[1], dtype=np.int64)
        result = classification_result(
            logits,
            test,
            classes=classes,
            primary="top1_accuracy",
            probabilities=logits.softmax(dim=1),
        )
        outcomes = result.outcomes[
            ["sample_id", "group", "label", "prediction", "confidence", "truth_confidence"]
        ].copy()
        hits = result.outcomes[HITS].to_numpy(copy=True)
        outcomes[HITS] = hits
        metrics = {HITS: result.metrics[HITS]}
        nll = {}
        for suffix, scale in (("", 1.0), ("_tempered", temperature)):
            logs = (logits.double() / scale).log_softmax(dim=1)
            columns = {f"{name}{suffix}": values for name, values in _outcomes(logs, truth).items()}
            outcomes = outcomes.assign(**columns)
            metrics |= _metrics(outcomes, suffix, num_classes=len(classes))
            nll[f"nll{suffix}"] = -float(outcomes[f"{LOGARITHM}{suffix}"].mean())
        return Measurement(
            metrics=metrics,
            primary_metric="expected_calibration_error",
            outcomes=outcomes,
            preset=settings.preset,
            preset_version=PRESET_VERSION,
            details={
                **nll,
                "temperature": temperature,
                "tuned_on": held_out.split,
                "num_bins": NUM_BINS,
                "num_images": len(test),
                "num_tuned_on": len(held_out),
                "num_classes": len(classes),
                "transform": context.backbone.transform_id,
                "data": {"test": test.fingerprint, "tuned_on": held_out.fingerprint},
            },
        )

    def _tuned_on(self, task: TaskDeclaration, workspace: Workspace) -> Dataset:
        """The split that the temperature is chosen on.

        Raises:
            ConfigError: The data set declares none that may be.
        """
        settings = self.settings_of(task)
        if settings.tuned_on is None:
            ours = "validation" if "validation" in task.splits else "train"
            return open_own_split(task, ours, workspace)
        return open_dataset(
            task.reader,
            settings.tuned_on,
            workspace.data,
            what=task.name,
            splits=list(dict.fromkeys([*declared_splits(task), settings.tuned_on])),
        )

    @staticmethod
    def _check_unseen(task: TaskDeclaration, settings: Settings, held_out: Dataset) -> None:
        """The split that chooses the temperature is neither tested nor trained on.

        Raises:
            ConfigError: It is.
        """
        if held_out.split == task.splits["test"]:
            raise ConfigError(
                f"{task.name}: tuned_on is the test split, which may choose nothing. Name another."
            )
        trained = [theirs for ours, theirs in task.splits.items() if ours != "test"]
        if settings.preset == "linear_probe" and held_out.split in trained:
            raise ConfigError(
                f"{task.name}: tuned_on is {held_out.split!r}, on which the probe is fitted, so "
                "its answers there are surer than elsewhere. Name a split of its own."
            )

    @staticmethod
    def _logits(context: ProtocolContext, dataset: Dataset) -> tuple[Tensor, Tensor]:
        """Logits [N, C] of a split, and the column of each truth, int64 [N]."""
        settings: Settings = context.settings
        if settings.prompts is not None:
            names = class_names_of(context.task, dataset)
            cosines = zero_shot_scores(context, dataset, names, settings.prompts)
            logits = logit_scale_of(context.backbone) * cosines
        else:
            logits = linear_probe_scores(context, dataset)
        classes = np.arange(logits.shape[1], dtype=np.int64)
        truth = torch.from_numpy(columns_of(dataset.need_labels(), classes, dataset))
        return logits.cpu(), truth


def _outcomes(logs: Tensor, truth: Tensor) -> dict[str, Floats]:
    """Columns of logarithms of class probabilities [N, C] and the column of the truth [N]."""
    probabilities = logs.exp()
    return {
        "brier_score": brier_scores(probabilities, truth),
        "confidence": probabilities.amax(dim=1).numpy(),
        LOGARITHM: logs.gather(1, truth[:, None])[:, 0].numpy(),
    }


def _metrics(outcomes: pd.DataFrame, suffix: str, *, num_classes: int) -> dict[str, Metric]:
    """The three numbers, of the outcome columns with a suffix.

    A calibration error has no score of guessing: a model that gives each class the same
    probability is calibrated, and one that guesses with confidence may have any error.
    """
    columns = (f"confidence{suffix}", HITS)
    confidence, hits = (outcomes[column].to_numpy(copy=True) for column in columns)
    logarithm = f"{LOGARITHM}{suffix}"
    return {
        f"expected_calibration_error{suffix}": Metric(
            expected_calibration_error(confidence, hits, num_bins=NUM_BINS),
            higher_is_better=False,
            statistic="calibration_error",
            columns=columns,
        ),
        f"brier_score{suffix}": Metric(
            float(outcomes[f"brier_score{suffix}"].mean()),
            higher_is_better=False,
            chance_level=(1 - 1 / num_classes) / 2,
        ),
        f"truth_probability{suffix}": Metric(
            float(np.exp(outcomes[logarithm].mean())),
            chance_level=1 / num_classes,
            statistic="geometric_mean",
            columns=(logarithm,),
        ),
    }


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest mean negative log-likelihood; 1 where none is lower.

    Args:
        logits: [N, C].
        labels: int64 [N].

    Raises:
        NonFiniteError: Logits are NaN or infinite.
    """
    check_finite(logits, "class scores")
    values = logits.double()

    def nll(log_temperature: float) -> float:
        logs = (values / np.exp(log_temperature)).log_softmax(dim=1)
        return -float(logs.gather(1, labels[:, None]).mean())

    bounds = tuple(np.log(TEMPERATURES))
    found = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if nll(found.x) < nll(0.0) - 1e-12 else 1.0
