"""Held pairs give the very batches of the loader, wherever they are."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip_bench.data.batch import RawBatch
from maskclip_bench.data.demo.formats import tar_bytes
from maskclip_bench.data.pairs import held as module
from maskclip_bench.data.pairs import held_reading
from maskclip_bench.data.pairs.batch_parts import PairDraws
from maskclip_bench.data.pairs.loader import PairLoader
from maskclip_bench.errors import DataError
from maskclip_bench.training.device_trace import DeviceTrace

MakeLoader = Callable[..., PairLoader]

SIZES = [(24, 24), (30, 20), (20, 30), (70, 33), (33, 70), (140, 130), (16, 16), (1, 1), (3, 90)]
"""Width and height of images; at 16 pixels the larger JPEGs are decoded at 1/2, 1/4 or 1/8."""


def encoded(width: int, height: int, seed: int, kind: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    mode = "CMYK" if kind == "JPEG" and seed % 5 == 0 else "RGB"
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write_shard(path: Path, samples: list[tuple[str, bytes, list[str]]]) -> None:
    members = []
    for key, image, captions in samples:
        members.append((f"{key}.jpg", image))
        members.append((f"{key}.json", json.dumps({"captions": captions}).encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """36 pairs of many sizes, JPEG and PNG, with one to three captions."""
    samples = []
    for number in range(36):
        width, height = SIZES[number % len(SIZES)]
        kind = "JPEG" if number % 3 else "PNG"
        captions = [f"a red circle {index}" for index in range(number % 3 + 1)]
        captions += ["", "  "] if number % 4 == 0 else []
        samples.append((f"{number:04d}", encoded(width, height, number, kind), captions))
    write_shard(tmp_path / "mixed.tar", samples)
    return tmp_path


def assert_same(left: list[RawBatch], right: list[RawBatch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys == b.keys
        assert torch.equal(a.tokens, b.tokens)
        for x, y in zip((a.images, *a.ssl_images), (b.images, *b.ssl_images), strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"views": 2},
        {"captions": "random_of_fields", "empty_captions": "keep"},
        {"captions": "first", "shuffle_window": 12},
        {"sampling": "resampled", "epoch_samples": 80, "views": 1},
        {"augment": {"crop_scale": [0.9, 1.0], "ssl_crop_scale": [0.9, 1.0]}, "views": 1},
        {"augment": {"crop_scale": [0.01, 0.02]}, "views": 1},
        {"seed": 3, "size": 32, "batch": 7},
    ],
)
def test_batches__to_the_bit_as_the_loaders(
    mixed: Path, make_loader: MakeLoader, changes: dict[str, Any]
) -> None:
    plain = make_loader(mixed, "mixed.tar", **changes)
    held = make_loader(mixed, "mixed.tar", **changes, held="device")
    assert held.steps_per_epoch == plain.steps_per_epoch
    for epoch in (0, 1, 5):
        assert_same(list(plain.epoch(epoch)), list(held.epoch(epoch)))


def test_batches__reduced_jpegs_are_among_them(mixed: Path, make_loader: MakeLoader) -> None:
    """Else the test above would not see them."""
    loader = make_loader(mixed, "mixed.tar", held="device", augment={"crop_scale": [0.9, 1.0]})
    held = loader._held
    assert held is not None
    assert held._num_levels.max() == 4
    reached = set()
    for request in (part for step in range(9) for part in loader._parts(0, step)):
        draws = held.draws[request].batch
        assert isinstance(draws, PairDraws)
        reached |= set(held._levels(draws).tolist())
    assert reached == {0, 1, 2, 3}
    assert len(held._blocks) > 4


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_resume__at_any_step_with_any_workers(
    shards: Path, make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setattr("maskclip_bench.data.pairs.loader.PART_SIZE", 3)
    whole = list(make_loader(shards, views=1).epoch(2))
    loader = make_loader(shards, views=1, held="device", num_workers=num_workers)
    for start_step in (0, 5, 12):
        assert_same(whole[start_step:], list(loader.epoch(2, start_step=start_step)))


def test_ranks__together_are_one(shards: Path, make_loader: MakeLoader) -> None:
    whole = list(make_loader(shards, batch=8).epoch(1))
    halves = [
        list(make_loader(shards, batch=4, rank=rank, world_size=2, held="device").epoch(1))
        for rank in (0, 1)
    ]
    for joined, first, second in zip(whole, *halves, strict=True):
        assert joined.keys == first.keys + second.keys
        assert torch.equal(joined.images, torch.cat([first.images, second.images]))


def test_bad_samples__replaced_and_counted_as_the_loader_does(
    tmp_path: Path, make_loader: MakeLoader, caplog: pytest.LogCaptureFixture
) -> None:
    samples = []
    for number in range(24):
        image = encoded(20, 20, number, "JPEG")
        image = image[:200] if number in (3, 11) else b"no image" if number == 7 else image
        captions = [" "] if number == 15 else [f"a circle {number}"]
        samples.append((f"{number:04d}", image, captions))
    write_shard(tmp_path / "some.tar", samples)
    told, batches = [], []
    for held in ("none", "device"):
        loader = make_loader(tmp_path, "some.tar", batch=5, held=held, max_bad_fraction=0.5)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            batches.append([batch for epoch in (0, 1) for batch in loader.epoch(epoch)])
        told.append((loader.report(), loader.num_replaced, caplog.messages))
    assert_same(*batches)
    assert told[0] == told[1]
    assert told[0][1] > 0


def test_too_many_bad_samples__stops(tmp_path: Path, make_loader: MakeLoader) -> None:
    samples = [
        (f"{n:04d}", b"no" if n % 2 else encoded(9, 9, n, "PNG"), ["a dog"]) for n in range(8)
    ]
    write_shard(tmp_path / "some.tar", samples)
    loader = make_loader(tmp_path, "some.tar", held="device")
    with pytest.raises(DataError, match=r"unusable in epoch 0.*some.tar: \d+ broken image"):
        list(loader.epoch(0))


def test_no_good_sample__stops(tmp_path: Path, make_loader: MakeLoader) -> None:
    write_shard(tmp_path / "some.tar", [(f"{n}", b"no", ["a dog"]) for n in range(5)])
    loader = make_loader(tmp_path, "some.tar", held="device", max_bad_fraction=1.0)
    with pytest.raises(DataError, match="Too many broken samples in one batch"):
        list(loader.epoch(0))


def test_changed_in_place__the_held_ones_stay(shards: Path, make_loader: MakeLoader) -> None:
    expected = list(make_loader(shards).epoch(1))
    loader = make_loader(shards, held="device")
    for shard in (shards / "shapes").glob("*.tar"):
        shard.write_bytes(b"\0" * shard.stat().st_size)
    assert_same(expected, list(loader.epoch(1)))


@pytest.mark.parametrize("free", [0, 20_000])
def test_too_large__says_what_is_needed(
    shards: Path, make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """48 images of 24 x 24 pixels have 82,944 bytes."""
    monkeypatch.setattr(module, "free_memory", lambda device: free)
    message = r"cpu needs about 0\.00 GiB for the 48 decoded images of shapes/.* Set data.held to"
    with pytest.raises(DataError, match=message):
        make_loader(shards, held="device")


def test_too_large__found_out_while_it_is_read(
    shards: Path, make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda device: 100_000)
    monkeypatch.setattr(held_reading, "estimated_bytes", lambda *given, **named: 0)
    with pytest.raises(DataError, match="may be used there, half of what is free"):
        make_loader(shards, held="device")


def test_fits_exactly(
    shards: Path, make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda device: 2 * 48 * 24 * 24 * 3)
    loader = make_loader(shards, held="device")
    assert loader._held is not None
    assert loader._held.num_bytes == 48 * 24 * 24 * 3


def test_batch__waits_for_nothing(mixed: Path, make_loader: MakeLoader) -> None:
    """Nothing of the device is read; what is copied is where the crops are."""
    loader = make_loader(mixed, "mixed.tar", views=2, batch=12, held="device")
    held = loader._held
    assert held is not None
    draws = held.draws[loader._parts(0, 0)[0]].batch
    assert isinstance(draws, PairDraws)
    trace = DeviceTrace()
    trace.on_device([block.images for block in held._blocks])
    with trace:
        held.batch(draws)
    assert not +trace.reads, dict(trace.reads)
    assert all(line.startswith("held.py") for line in +trace.copies), dict(+trace.copies)


@pytest.mark.gpu
def test_gpu__to_the_bit_and_without_waiting(
    mixed: Path, make_loader: MakeLoader, tokenizer: Any
) -> None:
    from maskclip_bench.data.pair_config import DataConfig

    settings = {"tokenizer": tokenizer, "image_size": 16, "num_ssl_views": 2, "seed": 0}
    config = DataConfig.model_validate({"source": {"path": "mixed.tar"}, "held": "device"})
    loader = PairLoader(config, data_root=mixed, batch_size_per_gpu=4, device="cuda", **settings)
    plain = list(make_loader(mixed, "mixed.tar", views=2).epoch(0))
    batches = list(loader.epoch(0))
    assert all(batch.images.is_cuda for batch in batches)
    there = [
        RawBatch(b.images.cpu(), b.tokens, tuple(v.cpu() for v in b.ssl_images), b.keys)
        for b in batches
    ]
    assert_same(plain, there)
    with warnings.catch_warnings():  # torch calls the mode a prototype
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
        try:
            list(loader.epoch(1))
        finally:
            torch.cuda.set_sync_debug_mode("default")
