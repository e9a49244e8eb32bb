"""Features, computed once: each image goes through a backbone one time, each prompt too.

The store is content-addressed. A file's name is the hash of everything its content depends on
(weights, transform, precision, content of the data, split, which images), so nothing is stale, and
tasks that share a split share its features. The features of a split are committed in parts, about
one a minute, so an interrupted pass continues where it was.

    features/{key[:2]}/{key}.safetensors             tensors under one key
    features/{key[:2]}/{key}-{start}.safetensors     a part of a split, from image `start` on
    the same name with .json                         what they are, and their hash; the commit point

Without a folder the store is in memory, for models that exist only in this process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from maskclip_bench import storage
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError, NonFiniteError
from maskclip_bench.progress import Progress, no_progress, throttled
from maskclip_bench.runtime import default_num_threads
from maskclip_bench.tasks.batch_size import batch_size_of
from maskclip_bench.tasks.cost import Pass, pass_of
from maskclip_bench.tasks.feature_files import Tensors, read_tensors, write_tensors

if TYPE_CHECKING:
    from maskclip_bench.backbones import Backbone

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Part of every key; raised when a stored feature changes its meaning."""

COMMIT_SECONDS = 60.0
"""What an interruption loses at most, about."""

IMAGE_BATCH = 256
TEXT_BATCH = 512
REPORT_SECONDS = 0.5

WORKERS_FROM_PIXELS = 20_000 * 64 * 64
"""Pixels from which decoding in worker processes pays for starting them."""

MEMORY_BYTES = 512 * 2**20
"""What `remembered` keeps."""

NAMED_SAMPLES = 3
"""How many samples an error names."""

T = TypeVar("T")


@dataclass(frozen=True)
class PassOptions:
    """How images and texts go through a backbone; no score depends on it beyond the last bits.

    Attributes:
        image_batch: Images at a time; `auto` fits the device's memory, None = `IMAGE_BATCH`.
        workers: Processes that decode images; None = as many as pay.
    """

    image_batch: int | Literal["auto"] | None = None
    workers: int | None = None


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
    """The features of a workspace, or of one process.

    Args:
        root: Folder of the store (`workspace.features`); None keeps features in memory only.
        options: Batches and workers.

    Attributes:
        passes: Of images through backbones, in this process.
    """

    def __init__(self, root: Path | None = None, *, options: PassOptions | None = None) -> None:
        self.root = root
        self.options = options or PassOptions()
        self._batches: dict[str, int] = {}
        self.passes: list[Pass] = []
        self._memory: dict[str, Tensors] = {}
        self._recent: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()
        if root is not None:
            storage.remove_leftovers(root, recursive=True)

    def images(
        self, backbone: Backbone, dataset: Dataset, *, progress: Progress = no_progress
    ) -> ImageFeatures:
        """Features of all images of a split, computed where they are not stored.

        Raises:
            DataError: An image cannot be read; names the file.
            NonFiniteError: Features are NaN or infinite; names the row and the first images.
            StorageError: The disk refused.
        """
        identity = {
            **identity_of(backbone),
            "transform": backbone.transform_id,
            "data": dataset.fingerprint,
            "split": dataset.split,
            "num_images": len(dataset),
        }
        if self.root is None:
            tensors = self.get(
                identity,
                lambda: _joined(list(self.extract(backbone, dataset, 0, progress))),
                note="",
            )
        else:
            tensors = self._stored_images(identity, backbone, dataset, progress)
        return ImageFeatures(backbone=tensors["backbone"], joint=tensors.get("joint"))

    def _stored_images(
        self, identity: dict[str, Any], backbone: Backbone, dataset: Dataset, progress: Progress
    ) -> Tensors:
        assert self.root is not None
        key = _key(identity)
        folder = self.root / key[:2]
        parts = _read_parts(folder, key)
        if _num_rows(parts) < len(dataset):
            with storage.exclusive(folder / key):
                parts = _read_parts(folder, key)  # another process may have made them meanwhile
                note = {
                    "what": f"{backbone.row_id}, {dataset.name} ({dataset.split})",
                    **identity,
                }
                began = time.monotonic()
                new = _extract_in_parts(
                    folder,
                    key,
                    lambda start: self.extract(backbone, dataset, start, progress),
                    len(dataset),
                    parts,
                    note,
                )
                size = sum(value[0].nbytes for value in new[0].values()) if new else 0
                took = time.monotonic() - began
                self.passes.append(pass_of(backbone, _num_rows(new), took, size))
                parts += new
        return parts[0] if len(parts) == 1 else _joined(parts)

    def extract(
        self, backbone: Backbone, dataset: Dataset, start: int, progress: Progress
    ) -> Iterator[Tensors]:
        """Outputs of the images from `start` on, a batch at a time, on the CPU.

        Raises:
            DataError: An image cannot be read; names the file.
            NonFiniteError: Outputs are NaN or infinite.
        """
        options = replace(self.options, image_batch=self.batch_of(backbone))
        return extract(backbone, dataset, start, progress, options)

    def batch_of(self, backbone: Backbone) -> int:
        """Images at a time for a backbone.

        Raises:
            ConfigError: With `auto`, not even a small batch fits.
        """
        if self.options.image_batch != "auto":
            return self.options.image_batch or IMAGE_BATCH
        if backbone.row_id not in self._batches:
            self._batches[backbone.row_id] = batch_size_of(backbone)
        return self._batches[backbone.row_id]

    def encode_ahead(
        self,
        backbone: Backbone,
        lists: Sequence[Sequence[str]],
        *,
        progress: Progress = no_progress,
    ) -> None:
        """Encode the texts of several tasks together, each distinct one once, shortest first.

        They are stored as each task will ask for them (`texts`). The text tower is called at most
        once for every `TEXT_BATCH` distinct texts, however many tasks there are.

        Raises:
            ConfigError: The backbone has no text tower.
            NonFiniteError: Embeddings are NaN or infinite.
            StorageError: The disk refused.
        """
        wanted = {tuple(_by_length(texts)): _text_identity(backbone, texts) for texts in lists}
        wanted = {texts: identity for texts, identity in wanted.items() if not self._has(identity)}
        if len(wanted) < 2:
            return  # `texts` does the same for one
        together = _by_length([text for texts in wanted for text in texts])
        encoded = _encode(backbone, together, progress)
        position = {text: index for index, text in enumerate(together)}
        for texts, identity in wanted.items():
            rows = torch.tensor([position[text] for text in texts], dtype=torch.int64)
            made = {"texts": encoded[rows]}
            self.get(identity, partial(dict, made), note=f"{backbone.row_id}, {len(texts)} texts")

    def texts(
        self, backbone: Backbone, texts: Sequence[str], *, progress: Progress = no_progress
    ) -> Tensor:
        """Embeddings of texts, each distinct one encoded once -> [T, P], L2-normalised.

        Raises:
            ConfigError: The backbone has no text tower.
            NonFiniteError: Embeddings are NaN or infinite; names the row and the first texts.
            StorageError: The disk refused.
        """
        distinct = _by_length(texts)
        stored = self.get(
            _text_identity(backbone, distinct),
            lambda: {"texts": _encode(backbone, distinct, progress)},
            note=f"{backbone.row_id}, {len(distinct)} texts",
        )["texts"]
        position = {text: index for index, text in enumerate(distinct)}
        return stored[torch.tensor([position[text] for text in texts], dtype=torch.int64)]

    def remembered(self, identity: list[Any], make: Callable[[], T], size: Callable[[T], int]) -> T:
        """A value that is kept in memory while there is room; the least recently used goes first.

        Args:
            identity: Everything it depends on, JSON-like.
            make: Computes it; may be called twice if two threads ask at once.
            size: Its bytes.
        """
        key = storage.fingerprint(identity, length=32)
        with self._lock:
            if key in self._recent:
                self._recent.move_to_end(key)
                found: T = self._recent[key][0]
                return found
        value = make()
        with self._lock:
            self._recent[key] = (value, size(value))
            while len(self._recent) > 1 and sum(s for _, s in self._recent.values()) > MEMORY_BYTES:
                self._recent.popitem(last=False)
        return value

    def _has(self, identity: dict[str, Any]) -> bool:
        """Whether something of that identity is stored; its content is not looked at."""
        key = _key(identity)
        if self.root is None:
            return key in self._memory
        return (self.root / key[:2] / f"{key}.json").is_file()

    def get(self, identity: dict[str, Any], make: Callable[[], Tensors], *, note: str) -> Tensors:
        """Tensors by what they depend on; made, and stored, if they are not there.

        Args:
            identity: Everything the tensors depend on, JSON-like.
            make: Computes them.
            note: What they are, for people who look into the store.

        Raises:
            StorageError: The disk refused.
        """
        key = _key(identity)
        if self.root is None:
            if key not in self._memory:
                self._memory[key] = make()
            return self._memory[key]
        path = self.root / key[:2] / f"{key}.safetensors"
        found = read_tensors(path)
        if found is not None:
            return found
        with storage.exclusive(path):
            found = read_tensors(path)  # another process or thread may have made it meanwhile
            if found is None:
                found = {name: value.contiguous() for name, value in make().items()}
                write_tensors(path, found, {"what": note, **identity})
            return found


def identity_of(backbone: Backbone) -> dict[str, Any]:
    """What any output of a backbone depends on, but its input."""
    return {
        "weights": backbone.weights_fingerprint,
        "precision": backbone.precision,
        "device": "cpu" if backbone.device.type == "cpu" else "accelerator",
    }


def _by_length(texts: Sequence[str]) -> list[str]:
    """The distinct texts, shortest first: those of one batch need about the same padding."""
    return sorted(set(texts), key=lambda text: (len(text), text))


def _text_identity(backbone: Backbone, texts: Sequence[str]) -> dict[str, Any]:
    distinct = storage.fingerprint(_by_length(texts), length=64)
    return {**identity_of(backbone), "texts": distinct}


def _key(identity: dict[str, Any]) -> str:
    return storage.fingerprint({**identity, "format": FORMAT_VERSION}, length=32)


# --- files ---------------------------------------------------------------------------------------


def _part_path(folder: Path, key: str, start: int) -> Path:
    return folder / f"{key}-{start}.safetensors"


def _read_parts(folder: Path, key: str) -> list[Tensors]:
    """The parts of a split that are stored without a gap, from its first image on."""
    parts: list[Tensors] = []
    while (part := read_tensors(_part_path(folder, key, _num_rows(parts)))) is not None:
        parts.append(part)
    return parts


def _extract_in_parts(
    folder: Path,
    key: str,
    extract_from: Callable[[int], Iterator[Tensors]],
    num_images: int,
    stored: list[Tensors],
    note: dict[str, Any],
) -> list[Tensors]:
    """Compute what is not stored, and commit it about once a minute -> the new parts."""
    start = done = _num_rows(stored)
    new: list[Tensors] = []
    waiting: list[Tensors] = []
    committed = time.monotonic()
    for outputs in extract_from(start):
        waiting.append(outputs)
        done += _num_rows([outputs])
        if done == num_images or time.monotonic() - committed >= COMMIT_SECONDS:
            part = _joined(waiting)
            write_tensors(_part_path(folder, key, start), part, {**note, "images": [start, done]})
            new.append(part)
            start, waiting, committed = done, [], time.monotonic()
    return new


def _num_rows(parts: Sequence[Tensors]) -> int:
    return sum(len(part["backbone"]) for part in parts)


def _joined(parts: Sequence[Tensors]) -> Tensors:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


# --- images --------------------------------------------------------------------------------------


class _Prepared(TorchDataset[tuple[Tensor | None, str]]):
    """Prepared images from `start` on; what cannot be read comes as words, not as an exception."""

    def __init__(self, dataset: Dataset, transform: Callable[..., Tensor], start: int) -> None:
        self.read = dataset.read
        self.transform = transform
        self.start = start
        self.stop = len(dataset)

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


def extract(
    backbone: Backbone,
    dataset: Dataset,
    start: int,
    progress: Progress,
    options: PassOptions,
) -> Iterator[Tensors]:
    """Outputs of the images from `start` on, a batch at a time, on the CPU."""
    stage, report = f"features of {dataset.split}", throttled(progress, seconds=REPORT_SECONDS)
    done = start
    for images in prepared_batches(backbone, dataset, start, progress, options):
        yield _outputs(backbone, images, dataset, done)
        done += len(images)
        report(stage, done, len(dataset))


def prepared_batches(
    backbone: Backbone, dataset: Dataset, start: int, progress: Progress, options: PassOptions
) -> Iterator[Tensor]:
    """The images from `start` on, prepared: uint8 [B, 3, S, S] each.

    Raises:
        DataError: An image cannot be read; names the file.
    """
    dataset.check_images(progress)
    prepared = _Prepared(dataset, backbone.transform, start)
    pixels = len(prepared) * backbone.image_size**2
    workers = min(8, default_num_threads()) if pixels >= WORKERS_FROM_PIXELS else 0
    assert options.image_batch != "auto"
    loader = DataLoader(
        prepared,
        batch_size=options.image_batch or IMAGE_BATCH,
        num_workers=workers if options.workers is None else options.workers,
        collate_fn=_collate,
        pin_memory=backbone.device.type == "cuda",
    )
    for images, problem in loader:
        if images is None:
            raise DataError(problem)
        yield images


def _outputs(backbone: Backbone, images: Tensor, dataset: Dataset, start: int) -> Tensors:
    """Outputs of one batch."""

    def encode(part: Tensor) -> Tensors:
        return {k: v.cpu() for k, v in backbone.image_outputs(part).items()}

    return name_not_finite(encode, images, dataset.sample_ids[start : start + len(images)])


def _encode(backbone: Backbone, texts: Sequence[str], progress: Progress) -> Tensor:
    """Texts, shortest first -> [T, P]."""
    report = throttled(progress, seconds=REPORT_SECONDS)

    def encode(part: Sequence[str]) -> Tensor:
        return backbone.encode_text(part).cpu()

    outputs = []
    for start in range(0, len(texts), TEXT_BATCH):
        batch = texts[start : start + TEXT_BATCH]
        outputs.append(name_not_finite(encode, batch, batch))
        report("texts", start + len(batch), len(texts))
    return torch.cat(outputs)


class _Batch(Protocol):
    """Something with parts: a tensor, a list."""

    def __getitem__(self, part: slice, /) -> Any: ...


def name_not_finite(encode: Callable[[Any], T], batch: _Batch, names: Sequence[str]) -> T:
    """`encode(batch)`; the error for outputs that are not finite names the first samples.

    Args:
        encode: Raises NonFiniteError where its outputs are not finite.
        batch: What to encode.
        names: Of its samples.

    Raises:
        NonFiniteError: With the names of the first samples that are not finite, found one by one.
    """
    try:
        return encode(batch)
    except NonFiniteError as error:
        found: list[str] = []
        for index, name in enumerate(names):
            try:
                encode(batch[index : index + 1])
            except NonFiniteError:
                found.append(repr(name))
            if len(found) == NAMED_SAMPLES:
                break
        where = f"First: {', '.join(found)}." if found else "Only as a batch, not one by one."
        raise NonFiniteError(f"{error} {where}") from None
