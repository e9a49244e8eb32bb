"""Test a trained classifier on splits, sharded over processes, and keep what came of it.

A result is named by all that it depends on beside the training, so that one training serves the
test splits of several tasks. N images, C classes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset

from maskclip_bench import distributed, storage
from maskclip_bench.backbones.transform import Transform
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError, JobError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.results.measurement import Metric
from maskclip_bench.runtime import default_num_threads
from maskclip_bench.tasks.finetuning.classifier import Classifier
from maskclip_bench.tasks.finetuning.folder import TrainFolder, read_tensors, write_tensors
from maskclip_bench.tasks.finetuning.recipe import TrainRecipe
from maskclip_bench.tasks.metrics import Integers
from maskclip_bench.tasks.protocols.classification import (
    ClassificationMetric,
    ClassificationResult,
    classification_result,
)

TEST_BATCH = 128
MAX_WORKERS = 8
RESULT_VERSION = 1
"""Raised when a stored result changes its meaning."""


@dataclass(frozen=True)
class ScoredSplit:
    """A split to test, opened.

    Attributes:
        key: Suffix of its metrics.
        dataset: The split.
        classes: Labels that the classifier may answer, ascending, int64.
        metric: The primary metric.
    """

    key: str
    dataset: Dataset
    classes: Integers
    metric: ClassificationMetric

    def identity(self, alpha: float | None) -> str:
        """Hash of all that a result depends on beside the training."""
        parts = [RESULT_VERSION, self.dataset.fingerprint, self.classes.tolist(), self.metric]
        return storage.fingerprint([*parts, alpha])


def transform_at_test(recipe: TrainRecipe, own: Transform) -> Transform:
    """The transform of test images: the recipe's crop, or the row's own transform."""
    if recipe.test_crop is None:
        return own
    return Transform(
        image_size=own.image_size,
        resize_to=int(own.image_size / recipe.test_crop),
        interpolation=recipe.test_interpolation,
        mean=own.mean,
        std=own.std,
    )


@dataclass(frozen=True)
class _Prepared(TorchDataset[tuple[Tensor | None, str]]):
    """Prepared images; what cannot be read comes as words, not as an exception."""

    dataset: Dataset
    transform: Transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str]:
        try:
            return self.transform(self.dataset.read(index)), ""
        except DataError as error:
            return None, str(error)


def scores_of(
    classifier: Classifier,
    dataset: Dataset,
    transform: Transform,
    folder: TrainFolder,
    *,
    device: torch.device,
    progress: Progress = no_progress,
) -> Tensor | None:
    """Logits of a split, float32 [N, C], on the main process (elsewhere None); every rank calls it.

    Each image is seen by one rank, so that no count depends on their number.

    Raises:
        DataError: An image cannot be read; names the file.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    own = range(rank, len(dataset), world_size)
    on_cuda = device.type == "cuda"
    loader = DataLoader(
        Subset(_Prepared(dataset, transform), own),
        batch_size=TEST_BATCH,
        num_workers=min(MAX_WORKERS, max(1, default_num_threads() // world_size)) if on_cuda else 0,
        collate_fn=list,
        pin_memory=False,
    )
    parts: list[Tensor] = []
    done = 0
    for samples in loader:
        for image, problem in samples:
            if image is None:
                raise DataError(problem)
        images = torch.stack([image for image, _ in samples]).to(device)
        with torch.no_grad():
            parts.append(classifier(transform.normalize(images)).float().cpu())
        done += len(images)
        progress(f"testing {dataset.split}", done, len(own))
    scores = torch.cat(parts) if parts else torch.zeros(0, 1)
    if world_size == 1:
        return scores
    return _joined(scores, folder, num_images=len(dataset))


def _joined(scores: Tensor, folder: TrainFolder, *, num_images: int) -> Tensor | None:
    """The logits of all ranks, through files, in the order of the images."""
    rank, world_size = distributed.rank(), distributed.world_size()
    path = folder.path / f"scores_{rank}.safetensors"
    digest = write_tensors(path, {"scores": scores})
    storage.write_text(path.with_suffix(".sha256"), digest)
    distributed.barrier()
    joined: Tensor | None = None
    if distributed.is_main():
        for other in range(world_size):
            source = folder.path / f"scores_{other}.safetensors"
            found = read_tensors(source, source.with_suffix(".sha256").read_text())
            if found is None:
                raise JobError(f"The scores of process {other} in {source} cannot be read.")
            part = found["scores"]
            if joined is None:
                joined = torch.zeros(num_images, part.shape[1])
            if len(part):
                joined[other::world_size] = part
    distributed.barrier()
    path.unlink(missing_ok=True)
    path.with_suffix(".sha256").unlink(missing_ok=True)
    return joined


def result_of(scores: Tensor, tested: ScoredSplit) -> ClassificationResult:
    """Metrics and outcomes of logits, among the classes that may be answered.

    Raises:
        NonFiniteError: Logits are NaN or infinite.
    """
    answered = scores[:, torch.from_numpy(tested.classes)]
    return classification_result(
        answered,
        tested.dataset,
        classes=tested.classes,
        primary=tested.metric,
        probabilities=answered.softmax(dim=1),
    )


def write_result(folder: TrainFolder, identity: str, result: ClassificationResult) -> None:
    """Store a result; its `.json` is the commit point."""
    path = folder.result(identity)
    outcomes = path.with_suffix(".parquet")
    with storage.atomic_file(outcomes) as temporary:
        result.outcomes.to_parquet(temporary)
        digest = storage.sha256_file(temporary)
    metrics = {name: asdict(metric) for name, metric in result.metrics.items()}
    storage.write_json(path, {"sha256": digest, "metrics": metrics})


def read_result(folder: TrainFolder, identity: str) -> ClassificationResult | None:
    """A stored result, or None if there is none or it is damaged."""
    path = folder.result(identity)
    outcomes = path.with_suffix(".parquet")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if storage.sha256_file(outcomes) != stored["sha256"]:
            return None
        metrics = {
            name: Metric(**{**values, "columns": tuple(values["columns"])})
            for name, values in stored["metrics"].items()
        }
        return ClassificationResult(metrics=metrics, outcomes=pd.read_parquet(outcomes))
    except (OSError, ValueError, KeyError, TypeError):
        return None
