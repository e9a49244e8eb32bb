"""Augmented images follow from (seed, epoch, image); the order of images from (seed, epoch)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip_bench.backbones.transform import Transform
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import TaskDeclaration
from maskclip_bench.tasks.finetuning.augmentation import (
    MicroBatchOrder,
    global_draws,
    micro_batches,
    train_transform,
)
from maskclip_bench.tasks.finetuning.recipe import Augmentation
from maskclip_bench.tasks.finetuning.schedule import TrainLength
from maskclip_bench.tasks.protocols.base import open_split
from tests.tasks.finetuning.tiny import NUM_TRAIN, SIZE, tiny_recipe

TEST = Transform(SIZE, SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
STRONG = tiny_recipe().augmentation


def noise(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_global_draws__are_seeded_and_put_back() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = draw()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    with global_draws(7):
        first = draw()
    assert draw() == expected
    with global_draws(7):
        assert draw() == first
    with global_draws(2**62 + 7):
        assert draw() != first


@pytest.mark.parametrize("crop", ["random_resized", "random_resized_no_retry", "none"])
def test_train_transform__shape_and_normalization(crop: str) -> None:
    transform = train_transform(Augmentation(crop=crop), TEST)
    with global_draws(3):
        first = transform(noise())
    with global_draws(3):
        again = transform(noise())
    with global_draws(4):
        other = transform(noise())
    assert first.shape == (3, SIZE, SIZE)
    assert first.dtype == torch.float32
    assert -1.001 <= float(first.min()) < 0 < float(first.max()) <= 1.001
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (crop == "none")
    if crop == "none":
        assert torch.equal(first, TEST.normalize(TEST(noise())[None])[0])


def test_train_transform__crop_once_stays_inside_any_image() -> None:
    transform = train_transform(Augmentation(crop="random_resized_no_retry"), TEST)
    for size in ((1, 1), (1, 300), (300, 2)):
        for seed in range(20):
            with global_draws(seed):
                assert transform(noise(*size)).shape == (3, SIZE, SIZE)


def test_train_transform__what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="states no mean and std"):
        train_transform(Augmentation(), Transform(SIZE, SIZE, mean=None, std=None))
    with pytest.raises(ConfigError, match="timm knows no augmentation 'no-such-policy'"):
        train_transform(Augmentation(auto_augment="no-such-policy"), TEST)


def order(start_step: int = 0, **more: int) -> MicroBatchOrder:
    length = TrainLength.of(tiny_recipe(), num_images=20)
    return MicroBatchOrder(length, num_images=20, seed=5, start_step=start_step, **more)


def test_order__each_image_once_an_epoch_and_the_same_from_any_step() -> None:
    whole = list(order())
    assert len(whole) == 9 * 3  # steps x micro-batches
    of_epoch = [image for batch in whole[:9] for _, image in batch]
    assert len(set(of_epoch)) == 18  # two of 20 are in no step
    assert {epoch for batch in whole[9:18] for epoch, _ in batch} == {1}
    assert [image for batch in whole[9:18] for _, image in batch] != of_epoch
    for step in range(10):
        assert list(order(step)) == whole[3 * step :]


def test_order__ranks_share_the_micro_batches() -> None:
    by_rank = [list(order(rank=rank, world_size=3)) for rank in range(3)]
    whole = list(order())
    assert [batch for batches in zip(*by_rank, strict=True) for batch in batches] == whole


def test_micro_batches__do_not_depend_on_workers_or_start(
    colours: TaskDeclaration, tmp_path: Path
) -> None:
    dataset = open_split(colours, "train", Workspace(root=tmp_path, data=tmp_path))
    length = TrainLength.of(tiny_recipe(), num_images=NUM_TRAIN)
    transform = train_transform(STRONG, TEST)

    def batches(start: int, workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        ordered = MicroBatchOrder(length, num_images=NUM_TRAIN, seed=0, start_step=start)
        return list(micro_batches(dataset, transform, ordered, num_workers=workers))

    whole = batches(0, 0)
    assert len(whole) == 27
    for found in (batches(2, 0), batches(2, 2)):
        assert len(found) == 21
        for (images, labels), (expected, truth) in zip(found, whole[6:], strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(labels, truth)


def test_micro_batches__an_image_that_cannot_be_read(
    colours: TaskDeclaration, tmp_path: Path
) -> None:
    dataset = open_split(colours, "train", Workspace(root=tmp_path, data=tmp_path))
    dataset.image_paths[3].write_bytes(b"no image")
    length = TrainLength.of(tiny_recipe(), num_images=NUM_TRAIN)
    ordered = MicroBatchOrder(length, num_images=NUM_TRAIN, seed=0)
    with pytest.raises(DataError, match=dataset.image_paths[3].name):
        list(micro_batches(dataset, train_transform(STRONG, TEST), ordered))
