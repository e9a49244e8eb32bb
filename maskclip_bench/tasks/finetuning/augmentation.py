"""Training images: augmented by timm, each draw decided by (seed, epoch, image) alone.

timm's transforms draw from the global generators of Python, NumPy and torch. They are seeded for
each image and put back, so that neither the order of images, nor worker processes, nor an
interruption changes what an image looks like in an epoch.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import functional

from maskclip_bench.backbones.families.base import one_at_a_time
from maskclip_bench.backbones.stated_preprocess import FILTERS
from maskclip_bench.backbones.transform import Transform
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.runtime import derive_seed
from maskclip_bench.tasks.finetuning.recipe import Augmentation
from maskclip_bench.tasks.finetuning.schedule import TrainLength

TrainTransform = Callable[[Image.Image], Tensor]
"""PIL image -> float [3, S, S], normalized."""

MicroBatch = tuple[Tensor, Tensor]
"""Images [B, 3, S, S] and labels, int64 [B]."""


@contextlib.contextmanager
def global_draws(seed: int, *, devices: Sequence[int] = ()) -> Iterator[None]:
    """Let all global generators draw as `seed` says, then put them back.

    Args:
        seed: Any non-negative integer.
        devices: CUDA devices whose generators are seeded, too.
    """
    in_worker = get_worker_info() is not None  # alone in its process, which may be a fork
    lock = contextlib.nullcontext() if in_worker else one_at_a_time()
    with lock, torch.random.fork_rng(devices=list(devices)):
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (timm's choice)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def train_transform(augmentation: Augmentation, test: Transform) -> TrainTransform:
    """The transform of training images.

    Args:
        augmentation: What to do.
        test: The row's transform, for size and normalization.

    Raises:
        ConfigError: The row does not say its mean and standard deviation, or timm does not know the
            policy.
    """
    if augmentation.crop == "none":
        return _Unchanged(test)
    if test.mean is None or test.std is None:
        raise ConfigError(
            "The row's own preprocessing states no mean and std, which augmented images need. "
            "State both under preprocess:, or set options: {augmentation.crop: none}."
        )
    if augmentation.crop == "random_resized_no_retry":
        return _CropOnce(augmentation, test)
    try:
        made: TrainTransform = create_transform(
            input_size=test.image_size,
            is_training=True,
            scale=augmentation.crop_scale,
            interpolation=augmentation.interpolation,
            hflip=augmentation.flip,
            color_jitter=None,  # type: ignore[arg-type]  # MAE's call; timm tests for None
            auto_augment=augmentation.auto_augment,
            re_prob=augmentation.erase_prob,
            re_mode="pixel",
            mean=test.mean,
            std=test.std,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(
            f"timm knows no augmentation {augmentation.auto_augment!r} ({error}). An example of "
            "one is rand-m9-mstd0.5-inc1."
        ) from error
    return made


@dataclass(frozen=True)
class _Unchanged:
    """The row's own test transform."""

    test: Transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.test.normalize(self.test(image)[None])[0]


@dataclass(frozen=True)
class _CropOnce:
    """One draw of area and aspect ratio, cut to the image (MAE's `util/crop.py`), then a flip."""

    augmentation: Augmentation
    test: Transform

    def __call__(self, image: Image.Image) -> Tensor:
        width, height = image.size
        area = random.uniform(*self.augmentation.crop_scale) * width * height
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
        crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
        top = random.randint(0, height - crop_height)
        left = random.randint(0, width - crop_width)
        box = (left, top, left + crop_width, top + crop_height)
        size = (self.test.image_size, self.test.image_size)
        image = image.resize(size, FILTERS[self.augmentation.interpolation], box=box)
        if random.random() < self.augmentation.flip:
            image = functional.hflip(image)
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
        return self.test.normalize(pixels[None])[0]


Index = tuple[int, int]
"""(epoch, image)."""


@dataclass(frozen=True)
class _Augmented(TorchDataset[tuple[Tensor | None, Any]]):
    """Augmented images; what cannot be read comes as words, not as an exception."""

    dataset: Dataset
    transform: TrainTransform
    labels: Tensor
    seed: int

    def __getitem__(self, index: Index) -> tuple[Tensor | None, Any]:
        epoch, image = index
        try:
            pixels = self.dataset.read(image)
        except DataError as error:
            return None, str(error)
        with global_draws(derive_seed(self.seed, "augmentation", epoch, image)):
            return self.transform(pixels), self.labels[image]


def _collate(samples: list[tuple[Tensor | None, Any]]) -> MicroBatch | str:
    for image, label in samples:
        if image is None:
            return str(label)
    images = torch.stack([image for image, _ in samples if image is not None])
    return images, torch.stack([label for _, label in samples])


@dataclass(frozen=True)
class MicroBatchOrder:
    """The images of each micro-batch of a rank, from a step on to the end of the run.

    The order of an epoch is a permutation that follows from (seed, epoch). Micro-batches are
    numbered within a step over all ranks, so that which rank does one changes nothing.
    """

    length: TrainLength
    num_images: int
    seed: int
    start_step: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[Index]]:
        length, size = self.length, self.length.micro_batch_size
        order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        of_epoch = -1
        for step in range(self.start_step, length.total_steps):
            epoch, in_epoch = divmod(step, length.steps_per_epoch)
            if epoch != of_epoch:
                generator = np.random.default_rng(derive_seed(self.seed, "order", epoch))
                order, of_epoch = generator.permutation(self.num_images), epoch
            first = in_epoch * length.micro_batches
            for micro in self.own:
                start = (first + micro) * size
                yield [(epoch, int(image)) for image in order[start : start + size]]

    @property
    def own(self) -> range:
        """Numbers of this rank's micro-batches in every step."""
        each = self.length.micro_batches // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)


def micro_batches(
    dataset: Dataset,
    transform: TrainTransform,
    order: MicroBatchOrder,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[MicroBatch]:
    """Augmented images and labels, micro-batch by micro-batch.

    Raises:
        DataError: An image cannot be read; names the file.
    """
    labels = torch.from_numpy(dataset.need_labels())
    loader = DataLoader(
        _Augmented(dataset, transform, labels, order.seed),
        batch_sampler=order,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise DataError(batch)
        yield batch
