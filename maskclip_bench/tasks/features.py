"""Features, computed once: each image goes through a backbone one time, each prompt too.

The store is content-addressed. A file's name is the hash of everything its content depends on
(weights, transform, precision, data, which images), so nothing is ever stale, and tasks that share
a split share its features. Long splits are stored in parts, so an interrupted run goes on where it
was.

    features/{key[:2]}/{key}.safetensors    the tensors
    features/{key[:2]}/{key}.json           what they are, and their hash; the commit point
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from maskclip_bench import storage
from maskclip_bench.backbones.loading import Backbone
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.runtime import default_num_threads

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of every key; raised when a stored feature changes its meaning."""

PART_SIZE = 50_000
"""Images in one file; what an interruption loses at most."""

IMAGE_BATCH = 256
TEXT_BATCH = 512
REPORT_SECONDS = 0.5

WORKERS_FROM_PIXELS = 20_000 * 64 * 64
"""Pixels in a part from which decoding in worker processes pays for starting them."""


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of a split, one row an image, float32 on the CPU.

    Attributes:
        backbone: [N, D], before any projection.
        joint: [N, P], L2-normalised; None for a backbone without a text tower.
    """

    backbone: Tensor
    joint: Tensor | None


class FeatureStore:
    """The features of a workspace.

    Args:
        root: Folder of the store (`workspace.features`).
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def images(
        self, backbone: Backbone, dataset: Dataset, *, progress: Progress = no_progress
    ) -> ImageFeatures:
        """Features of all images of a split, computed if they are not stored.

        Raises:
            DataError: An image cannot be read; names the file.
            StorageError: The disk refused.
        """
        parts = [
            self._part(backbone, dataset, start, progress)
            for start in range(0, len(dataset), PART_SIZE)
        ]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return ImageFeatures(backbone=tensors["backbone"], joint=tensors.get("joint"))

    def _part(
        self, backbone: Backbone, dataset: Dataset, start: int, progress: Progress
    ) -> dict[str, Tensor]:
        identity = {
            **identity_of(backbone),
            "transform": backbone.transform_id,
            "data": dataset.fingerprint,
            "images": [start, min(start + PART_SIZE, len(dataset))],
        }
        return self.get(
            identity,
            lambda: _extract(backbone, dataset, start, progress),
            note=f"{backbone.row_id}, {dataset.name} ({dataset.split})",
        )

    def texts(
        self, backbone: Backbone, texts: Sequence[str], *, progress: Progress = no_progress
    ) -> Tensor:
        """Embeddings of texts, each distinct one encoded once -> [T, P], L2-normalised.

        Raises:
            ConfigError: The backbone has no text tower.
            StorageError: The disk refused.
        """
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        stored = self.get(
            {**identity_of(backbone), "texts": storage.fingerprint(distinct, length=64)},
            lambda: {"texts": _encode(backbone, distinct, progress)},
            note=f"{backbone.row_id}, {len(distinct)} texts",
        )["texts"]
        place = {text: index for index, text in enumerate(distinct)}
        return stored[torch.tensor([place[text] for text in texts], dtype=torch.int64)]

    def get(
        self, identity: dict[str, Any], make: Callable[[], dict[str, Tensor]], *, note: str
    ) -> dict[str, Tensor]:
        """Tensors by what they depend on; made, and stored, if they are not there.

        Args:
            identity: Everything the tensors depend on, JSON-like.
            make: Computes them.
            note: What they are, for people who look into the store.

        Raises:
            StorageError: The disk refused.
        """
        key = storage.fingerprint({**identity, "format": FORMAT_VERSION}, length=32)
        path = self.root / key[:2] / f"{key}.safetensors"
        found = _read(path)
        if found is not None:
            return found
        with storage.exclusive(path):
            found = _read(path)  # another process or thread may have made it meanwhile
            if found is None:
                found = {name: value.contiguous() for name, value in make().items()}
                _write(path, found, {"what": note, **identity})
            return found


def identity_of(backbone: Backbone) -> dict[str, Any]:
    """What any output of a backbone depends on, but its input."""
    return {
        "weights": backbone.weights_fingerprint,
        "precision": backbone.precision,
        "device": "cpu" if backbone.device.type == "cpu" else "accelerator",
    }


def _read(path: Path) -> dict[str, Tensor] | None:
    """Stored tensors, or None if there are none or they are damaged (then they are removed)."""
    note = path.with_suffix(".json")
    if not note.is_file():
        return None
    try:
        expected = json.loads(note.read_text(encoding="utf-8"))["sha256"]
        if storage.sha256_file(path) != expected:
            raise ValueError("its hash is not the recorded one")
        return load_file(str(path))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("Stored features %s are damaged (%s); computing them again", path, error)
        note.unlink(missing_ok=True)
        return None


def _write(path: Path, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
    with storage.atomic_file(path) as temporary:
        save_file(tensors, str(temporary))
        digest = storage.sha256_file(temporary)
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    storage.write_json(path.with_suffix(".json"), {"sha256": digest, "shapes": shapes, **note})


# --- images --------------------------------------------------------------------------------------


class _Prepared(TorchDataset[tuple[Tensor | None, str]]):
    """Prepared images of a range; what cannot be read comes as words, not as an exception."""

    def __init__(self, dataset: Dataset, transform: Callable[..., Tensor], start: int) -> None:
        self.read = dataset.read
        self.transform = transform
        self.start = start
        self.stop = min(start + PART_SIZE, len(dataset))

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> tuple[Tensor | None, str]:
        try:
            return self.transform(self.read(self.start + index)), ""
        except DataError as error:
            return None, str(error)


def _collate(samples: list[tuple[Tensor | None, str]]) -> tuple[Tensor | None, str]:
    for image, problem in samples:
        if image is None:
            return None, problem
    return torch.stack([image for image, _ in samples if image is not None]), ""


def _extract(
    backbone: Backbone, dataset: Dataset, start: int, progress: Progress
) -> dict[str, Tensor]:
    prepared = _Prepared(dataset, backbone.transform, start)
    stage, reporter = f"features of {dataset.split}", _Reporter(progress, len(dataset))
    outputs: list[dict[str, Tensor]] = []
    done = start
    for images in _batches(prepared, backbone):
        outputs.append({k: v.cpu() for k, v in backbone.image_outputs(images).items()})
        done += len(images)
        reporter(stage, done)
    return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}


def _batches(prepared: _Prepared, backbone: Backbone) -> Iterator[Tensor]:
    pixels = len(prepared) * backbone.image_size**2
    workers = min(8, default_num_threads()) if pixels >= WORKERS_FROM_PIXELS else 0
    loader = DataLoader(
        prepared,
        batch_size=IMAGE_BATCH,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=backbone.device.type == "cuda",
    )
    for images, problem in loader:
        if images is None:
            raise DataError(problem)
        yield images


def _encode(backbone: Backbone, texts: Sequence[str], progress: Progress) -> Tensor:
    """Texts, shortest first -> [T, P]."""
    reporter = _Reporter(progress, len(texts))
    outputs = []
    for start in range(0, len(texts), TEXT_BATCH):
        batch = texts[start : start + TEXT_BATCH]
        outputs.append(backbone.encode_text(batch).cpu())
        reporter("texts", start + len(batch))
    return torch.cat(outputs)


class _Reporter:
    """Tells progress now and then, and at the end."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.total = total
        self.last = 0.0

    def __call__(self, stage: str, done: int) -> None:
        if done >= self.total or time.monotonic() - self.last >= REPORT_SECONDS:
            self.last = time.monotonic()
            self.progress(stage, done, self.total)
