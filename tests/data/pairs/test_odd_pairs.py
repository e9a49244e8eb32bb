"""Odd sets and odd images, with and without held images: the same batches, or the same error."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip_bench.data.demo.formats import tar_bytes
from maskclip_bench.data.pairs.loader import PairLoader
from maskclip_bench.errors import DataError

MakeLoader = Callable[..., PairLoader]
Sample = tuple[str, str, bytes, list[str]]

HELD = pytest.mark.parametrize("held", ["none", "device"])


def picture(width: int, height: int, mode: str = "RGB", *, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_shard(path: Path, samples: list[Sample]) -> None:
    members = []
    for key, suffix, image, captions in samples:
        members.append((f"{key}.{suffix}", image))
        members.append((f"{key}.json", json.dumps({"captions": captions}).encode()))
    path.write_bytes(tar_bytes(members))


def plain(count: int, *, captions: tuple[str, ...] = ("a dog",), first: int = 0) -> list[Sample]:
    return [
        (f"{n:03d}", "png", encoded(picture(9, 9, seed=n), "PNG"), list(captions))
        for n in range(first, first + count)
    ]


ODD = {
    "one pixel": ("png", encoded(picture(1, 1), "PNG")),
    "a line across": ("png", encoded(picture(30_000, 1), "PNG")),
    "a line down": ("png", encoded(picture(1, 30_000), "PNG")),
    "four inks": ("jpg", encoded(picture(40, 40, "CMYK"), "JPEG")),
    "four inks, decoded at a half": ("jpg", encoded(picture(70, 70, "CMYK"), "JPEG")),
    "grey": ("jpg", encoded(picture(200, 140, "L"), "JPEG")),
    "sixteen bits": ("png", encoded(picture(20, 30, "I;16"), "PNG")),
    "two colours": ("png", encoded(picture(20, 30, "1"), "PNG")),
    "see-through": ("png", encoded(picture(20, 30, "RGBA"), "PNG")),
    "a palette": ("gif", encoded(picture(20, 30, "P"), "GIF")),
    "animated": (
        "gif",
        encoded(
            picture(20, 30, "P"),
            "GIF",
            save_all=True,
            append_images=[picture(20, 30, "P", seed=n) for n in (1, 2)],
        ),
    ),
    "turned by its tag": ("tif", encoded(picture(20, 30), "TIFF", tiffinfo={0x112: 6})),
}


def test_odd_images__the_same_pixels_where_they_are_held(
    tmp_path: Path, make_loader: MakeLoader
) -> None:
    samples = [(f"{number:02d}", *kind, [name]) for number, (name, kind) in enumerate(ODD.items())]
    write_shard(tmp_path / "odd.tar", samples)
    loaders = [
        make_loader(tmp_path, "odd.tar", batch=len(ODD), views=1, held=held, max_bad_fraction=0.0)
        for held in ("none", "device")
    ]
    for epoch in range(3):
        (theirs,), (ours,) = (list(loader.epoch(epoch)) for loader in loaders)
        assert ours.keys == theirs.keys
        for key, *views in zip(
            theirs.keys,
            theirs.images,
            ours.images,
            theirs.ssl_images[0],
            ours.ssl_images[0],
            strict=True,
        ):
            name = list(ODD)[int(key)]
            assert torch.equal(views[0], views[1]), name
            assert torch.equal(views[2], views[3]), name


@HELD
def test_all_captions_empty(tmp_path: Path, make_loader: MakeLoader, held: str) -> None:
    write_shard(tmp_path / "a.tar", plain(6, captions=("", " \t")))
    with pytest.raises(DataError, match=r"unusable in epoch 0.*a\.tar: \d+ empty caption"):
        list(make_loader(tmp_path, "a.tar", batch=3, held=held).epoch(0))
    with pytest.raises(DataError, match=r"Too many broken samples.*empty caption"):
        list(make_loader(tmp_path, "a.tar", batch=3, held=held, max_bad_fraction=1.0).epoch(0))
    kept = make_loader(tmp_path, "a.tar", batch=3, held=held, empty_captions="keep")
    for batch in kept.epoch(0):
        assert batch.tokens.shape == (3, 2)  # start and end


@HELD
@pytest.mark.parametrize("count", [1, 5])
def test_batch_is_the_whole_set(
    tmp_path: Path, make_loader: MakeLoader, held: str, count: int
) -> None:
    write_shard(tmp_path / "a.tar", plain(count))
    loader = make_loader(tmp_path, "a.tar", batch=count, held=held)
    assert loader.steps_per_epoch == 1
    for epoch in range(3):
        (batch,) = loader.epoch(epoch)
        assert sorted(batch.keys) == [f"{n:03d}" for n in range(count)]


@HELD
def test_one_broken_sample_and_nothing_else(
    tmp_path: Path, make_loader: MakeLoader, held: str
) -> None:
    write_shard(tmp_path / "a.tar", [("0", "png", b"", ["a dog"])])
    loader = make_loader(tmp_path, "a.tar", batch=1, held=held, max_bad_fraction=1.0)
    with pytest.raises(DataError, match=r"Too many broken samples.*1 broken image \(0\)"):
        list(loader.epoch(0))


@HELD
def test_one_key_in_two_shards__both_are_shown(
    tmp_path: Path, make_loader: MakeLoader, held: str
) -> None:
    """With the crops and the number of the caption that their common key gives."""
    write_shard(tmp_path / "a.tar", plain(4))
    write_shard(tmp_path / "b.tar", plain(4, captions=("a cat",)))
    loader = make_loader(tmp_path, "{a,b}.tar", batch=8, held=held)
    (batch,) = loader.epoch(0)
    assert Counter(batch.keys) == {f"{n:03d}": 2 for n in range(4)}
    for key in set(batch.keys):
        one, other = (number for number, each in enumerate(batch.keys) if each == key)
        assert torch.equal(batch.images[one], batch.images[other])
        assert not torch.equal(batch.tokens[one], batch.tokens[other])


@HELD
def test_a_folder_in_the_place_of_a_shard__is_counted(
    tmp_path: Path, make_loader: MakeLoader, held: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(tmp_path / "a.tar", plain(4))
    (tmp_path / "b.tar").mkdir()
    with pytest.raises(DataError, match=r"50\.0%.*b\.tar: 4 broken shard"):
        make_loader(tmp_path, "{a,b}.tar", held=held)
    with caplog.at_level(logging.WARNING):
        loader = make_loader(tmp_path, "{a,b}.tar", held=held, max_bad_fraction=0.5)
    assert loader.num_lost == 4
    assert "b.tar: samples left out: 4 broken shard" in caplog.text


def test_changed_in_place_between_epochs__is_counted(
    tmp_path: Path, make_loader: MakeLoader
) -> None:
    """A shard of zeros of the same length: the index of the run still points into it."""
    write_shard(tmp_path / "a.tar", plain(6))
    write_shard(tmp_path / "b.tar", plain(6, first=6))
    loader = make_loader(tmp_path, "{a,b}.tar", batch=4, max_bad_fraction=0.9)
    keys = Counter(key for batch in loader.epoch(0) for key in batch.keys)
    assert len(keys) == 12
    shard = tmp_path / "b.tar"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    keys = Counter(key for batch in loader.epoch(1) for key in batch.keys)
    assert sum(keys.values()) == 12
    assert all(int(key) < 6 for key in keys)
    assert sum(loader.report()["b.tar"].values()) == 6
    again = make_loader(tmp_path, "{a,b}.tar", batch=4, max_bad_fraction=0.9)
    assert again.num_samples == 6, "a new run indexes it anew"
