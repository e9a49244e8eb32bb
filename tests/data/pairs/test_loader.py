from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from maskclip_bench.data.batch import RawBatch
from maskclip_bench.data.pairs import loader as pairs
from maskclip_bench.data.pairs.loader import (
    PairLoader,
    epoch_order,
    resampled_order,
)
from maskclip_bench.data.shapes import write_shape_shards
from maskclip_bench.errors import DataError

MakeLoader = Callable[..., PairLoader]
ALL_KEYS = [f"{index:06d}" for index in range(48)]


def assert_same(left: list[RawBatch], right: list[RawBatch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys == b.keys
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.tokens, b.tokens)
        assert len(a.ssl_images) == len(b.ssl_images)
        assert all(torch.equal(x, y) for x, y in zip(a.ssl_images, b.ssl_images, strict=True))


def break_image(shard: Path, *, number: int) -> None:
    """Overwrite the middle of the `number`-th JPEG of a tar."""
    data = bytearray(shard.read_bytes())
    position = -1
    for _ in range(number + 1):
        position = data.index(b"\xff\xd8\xff", position + 1)
    data[position + 20 : position + 84] = b"\0" * 64  # the marker stays, to count by
    shard.write_bytes(bytes(data))


def test_batches__shapes_and_types(shards: Path, make_loader: MakeLoader) -> None:
    batch = next(make_loader(shards, views=2).epoch(0))
    assert batch.images.shape == (4, 3, 16, 16) and batch.images.dtype == torch.uint8
    assert [view.shape for view in batch.ssl_images] == [(4, 3, 16, 16)] * 2
    assert not torch.equal(batch.ssl_images[0], batch.ssl_images[1])
    assert batch.tokens.dtype == torch.int64 and batch.tokens.shape[0] == 4
    assert batch.tokens[:, -1].max() > 0, "not trimmed to the longest caption"


def test_pixels__are_those_of_the_image(tmp_path: Path, make_loader: MakeLoader) -> None:
    write_shape_shards(tmp_path / "s", num_samples=8, num_shards=1, size=32)
    loader = make_loader(tmp_path, "s/shapes-000000.tar", size=32, batch=8)
    means = {
        key: image.float().mean(dim=(1, 2))
        for batch in loader.epoch(0)
        for key, image in zip(batch.keys, batch.images, strict=True)
    }
    from maskclip_bench.data.shapes import draw_shapes

    for key, mean in means.items():
        whole = np.asarray(draw_shapes(int(key), size=32)[0]).mean(axis=(0, 1))
        assert np.abs(mean.numpy() - whole).max() < 40, "channels swapped or wrong image"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_exact__every_sample_once_over_ranks(
    shards: Path, make_loader: MakeLoader, world_size: int
) -> None:
    orders = []
    for epoch in range(2):
        keys: list[str] = []
        for rank in range(world_size):
            loader = make_loader(shards, rank=rank, world_size=world_size)
            assert loader.steps_per_epoch == 48 // (4 * world_size)
            keys += [key for batch in loader.epoch(epoch) for key in batch.keys]
        assert sorted(keys) == ALL_KEYS
        orders.append(keys)
    assert orders[0] != orders[1]


def test_exact__ranks_together_are_one_process(shards: Path, make_loader: MakeLoader) -> None:
    whole = list(make_loader(shards, batch=8).epoch(3))
    halves = [
        list(make_loader(shards, batch=4, rank=rank, world_size=2).epoch(3)) for rank in (0, 1)
    ]
    for joined, first, second in zip(whole, *halves, strict=True):
        assert joined.keys == first.keys + second.keys
        assert torch.equal(joined.images, torch.cat([first.images, second.images]))


def test_exact__left_over_is_less_than_a_batch(shards: Path, make_loader: MakeLoader) -> None:
    loader = make_loader(shards, batch=5, world_size=2)
    assert loader.steps_per_epoch == 4
    keys = [key for batch in loader.epoch(0) for key in batch.keys]
    assert len(keys) == len(set(keys)) == 20


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_workers__same_batches_with_any_number(shards: Path, make_loader: MakeLoader) -> None:
    plain = make_loader(shards, views=1)
    for num_workers in (1, 2):
        loader = make_loader(shards, views=1, num_workers=num_workers)
        for epoch in (0, 1):
            assert_same(list(plain.epoch(epoch)), list(loader.epoch(epoch)))
        abandoned = loader.epoch(2)
        next(abandoned)
        del abandoned
        assert_same(list(plain.epoch(3, start_step=5)), list(loader.epoch(3, start_step=5)))


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_workers__leave_torchs_generator_alone(shards: Path, make_loader: MakeLoader) -> None:
    loader = make_loader(shards, num_workers=1)
    before = torch.get_rng_state()
    list(loader.epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("source", [{}, {"shuffle_window": 16}, {"sampling": "resampled"}])
def test_resume__equals_the_tail(
    shards: Path, make_loader: MakeLoader, source: dict[str, object]
) -> None:
    whole = list(make_loader(shards, views=2, **source).epoch(5))
    for start_step in (0, 1, 7, 12):
        resumed = make_loader(shards, views=2, **source).epoch(5, start_step=start_step)
        assert_same(whole[start_step:], list(resumed))


def test_resume__with_broken_samples(shards: Path, make_loader: MakeLoader) -> None:
    break_image(shards / "shapes/shapes-000001.tar", number=2)
    break_image(shards / "shapes/shapes-000003.tar", number=5)
    whole = list(make_loader(shards, batch=5, max_bad_fraction=0.2).epoch(0))
    resumed = list(make_loader(shards, batch=5, max_bad_fraction=0.2).epoch(0, start_step=4))
    assert_same(whole[4:], resumed)


def test_resume__reads_nothing_that_is_skipped(
    shards: Path, make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(shards)
    reads = []
    read = loader._source.read
    monkeypatch.setattr(loader._source, "read", lambda index: reads.append(index) or read(index))
    list(loader.epoch(0, start_step=10))
    assert len(reads) == 8


def test_seed__changes_order_and_crops(shards: Path, make_loader: MakeLoader) -> None:
    first = list(make_loader(shards, seed=0).epoch(0))
    second = list(make_loader(shards, seed=1).epoch(0))
    assert [b.keys for b in first] != [b.keys for b in second]


def test_epoch_order__windows() -> None:
    order = epoch_order(1000, seed=0, epoch=0, window=100)
    assert sorted(order) == list(range(1000))
    assert not np.array_equal(order, epoch_order(1000, seed=0, epoch=1, window=100))
    runs = [len(set(order[begin : begin + 100] // 12)) for begin in range(0, 1000, 100)]
    assert max(runs) <= 12, "a window should be made of few runs of neighbours"


def test_resampled_order__follows_weights() -> None:
    order = resampled_order([100, 300], [3.0, 1.0], 40_000, seed=0, epoch=0)
    share = float((order < 100).mean())
    assert share == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(order)) == 400 and order.max() == 399


def test_resampled__weights_by_part(shards: Path, make_loader: MakeLoader) -> None:
    loader = make_loader(
        shards,
        "shapes/shapes-{000000..000002}.tar::shapes/shapes-000003.tar",
        sampling="resampled",
        weights="1::9",
        epoch_samples=480,
    )
    assert loader.steps_per_epoch == 120
    keys = [key for batch in loader.epoch(0) for key in batch.keys]
    share = np.mean([int(key) % 4 == 3 for key in keys])
    assert share == pytest.approx(0.75, abs=0.08)


def test_resampled__repeats_differ(shards: Path, make_loader: MakeLoader) -> None:
    loader = make_loader(
        shards, "shapes/shapes-000000.tar", sampling="resampled", epoch_samples=200
    )
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in loader.epoch(0):
        for key, image in zip(batch.keys, batch.images, strict=True):
            seen.setdefault(key, []).append(image)
    images = seen[max(seen, key=lambda key: len(seen[key]))]
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_broken_image__replaced_counted_and_named_once(
    shards: Path, make_loader: MakeLoader, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    break_image(shards / "shapes/shapes-000001.tar", number=0)
    break_image(shards / "shapes/shapes-000001.tar", number=3)
    loader = make_loader(shards, batch=23, max_bad_fraction=0.1, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        keys = [key for batch in loader.epoch(0) for key in batch.keys]
    assert len(keys) == 46, "every batch is full"
    counted = sum(loader.report()["shapes/shapes-000001.tar"].values())
    assert counted in (1, 2), "one of them may be left over"
    named = [r for r in caplog.records if "skipped" in r.getMessage()]
    assert len(named) == 1 and "shapes/shapes-000001.tar" in named[0].getMessage()
    assert "samples replaced" in caplog.text


def test_broken_image__left_over_samples_come_first(shards: Path, make_loader: MakeLoader) -> None:
    break_image(shards / "shapes/shapes-000000.tar", number=4)
    loader = make_loader(shards, batch=40, max_bad_fraction=0.1)
    (batch,) = loader.epoch(0)
    assert len(set(batch.keys)) == 40


def test_too_many_broken__stops(shards: Path, make_loader: MakeLoader) -> None:
    for number in range(12):
        break_image(shards / "shapes/shapes-000002.tar", number=number)
    loader = make_loader(shards)
    with pytest.raises(
        DataError, match=r"unusable in epoch 0.*shapes-000002.tar: \d+ broken image"
    ):
        list(loader.epoch(0))


def test_no_good_sample_left__stops(tmp_path: Path, make_loader: MakeLoader) -> None:
    write_shape_shards(tmp_path / "shapes", num_samples=4, num_shards=1, size=24)
    for number in range(4):
        break_image(tmp_path / "shapes/shapes-000000.tar", number=number)
    loader = make_loader(tmp_path, "shapes/*.tar", max_bad_fraction=1.0)
    with pytest.raises(DataError, match="Too many broken samples in one batch"):
        next(loader.epoch(0))


def test_missing_shard__counted_or_stops(
    shards: Path, make_loader: MakeLoader, caplog: pytest.LogCaptureFixture
) -> None:
    (shards / "shapes/shapes-000002.tar").unlink()
    with pytest.raises(DataError, match=r"25.0%.*shapes-000002.tar: 12 missing shard"):
        make_loader(shards)
    with caplog.at_level(logging.WARNING):
        loader = make_loader(shards, max_bad_fraction=0.5)
    assert loader.num_samples == 36
    assert loader.report() == {"shapes/shapes-000002.tar": {"missing shard": 12}}
    assert caplog.text.count("samples left out: 12 missing shard") == 2  # one for each loader
    assert len([key for batch in loader.epoch(0) for key in batch.keys]) == 36


def test_shard_vanishes__counted(shards: Path, make_loader: MakeLoader) -> None:
    loader = make_loader(shards, max_bad_fraction=0.5)
    (shards / "shapes/shapes-000002.tar").unlink()
    keys = Counter(key for batch in loader.epoch(0) for key in batch.keys)
    assert sum(keys.values()) == 48
    assert loader.report() == {"shapes/shapes-000002.tar": {"missing shard": 12}}


def test_fewer_samples_than_a_batch__says_so(shards: Path, make_loader: MakeLoader) -> None:
    with pytest.raises(DataError, match="48 usable samples, fewer than one global batch of 64"):
        make_loader(shards, batch=32, world_size=2)


def test_requests__do_not_depend_on_history(shards: Path, make_loader: MakeLoader) -> None:
    loader = make_loader(shards)
    list(loader.epoch(0))
    assert_same(list(loader.epoch(4)), list(make_loader(shards).epoch(4)))
    assert pairs.SHUFFLED_RUN > 0


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_parts__joined_they_are_the_batch(
    shards: Path, make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """Pixels, captions padded to the longest, views, and their layout in memory."""
    whole = list(make_loader(shards, batch=8, views=1).epoch(0))
    monkeypatch.setattr(pairs, "PART_SIZE", 3)
    loader = make_loader(shards, batch=8, views=1, num_workers=num_workers)
    joined = list(loader.epoch(0))
    assert_same(joined, whole)
    assert joined[0].images.stride() == whole[0].images.stride()
    assert_same(list(loader.epoch(0, start_step=2)), whole[2:])


def test_parts__no_sample_stands_in_twice(
    shards: Path, make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of each part is broken; what replaces them is another sample each time."""
    monkeypatch.setattr(pairs, "PART_SIZE", 8)
    for number in (0, 1, 2, 5):
        break_image(shards / "shapes/shapes-000000.tar", number=number)
    for epoch in range(3):
        loader = make_loader(shards, batch=16, max_bad_fraction=0.5)
        for batch in loader.epoch(epoch):
            assert len(set(batch.keys)) == 16
        assert loader.num_replaced > 0
