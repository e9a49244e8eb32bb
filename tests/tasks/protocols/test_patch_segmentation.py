"""Patch protocols: labels, tiles and fits against plain versions, and a whole run on toy scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskclip_bench.backbones import Backbone, load_backbone
from maskclip_bench.data.dense import count_pixels, read_mask
from maskclip_bench.errors import DataError, NonFiniteError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.protocols import patch_segmentation
from maskclip_bench.tasks.protocols.base import evenly_spaced
from maskclip_bench.tasks.protocols.knn_segmentation import KnnSegmentation
from maskclip_bench.tasks.protocols.linear_segmentation import LinearSegmentation
from maskclip_bench.tasks.protocols.patch_segmentation import (
    image_windows,
    join_tiles,
    patch_labels,
    segment,
)

from .scenes import ROW, context, write_scenes


def test_windows__and_their_tokens_make_the_whole_image_again(tmp_path: Path) -> None:
    backbone = load_backbone(ROW, workspace=Workspace(root=tmp_path, data=tmp_path))
    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    windows = image_windows(Image.fromarray(pixels), backbone, tiles=2)  # [4, 3, 48, 48]
    assert torch.equal(windows[1].permute(1, 2, 0), torch.from_numpy(pixels[:48, 48:]))
    # One "token" a pixel: joining the tiles gives the pixels in row-major order.
    tokens = windows.flatten(2).transpose(1, 2)
    assert torch.equal(join_tiles(tokens, 2)[0], torch.from_numpy(pixels).reshape(-1, 3))


def test_patch_labels__shares() -> None:
    mask = np.array([[0, 0, 1, 255], [0, 1, 1, 255], [2, 2, 2, 2], [2, 2, 2, 2]], np.uint8)
    shares = patch_labels(mask, num_classes=3, grid=2)
    expected = torch.tensor([[0.75, 0.25, 0], [0, 0.5, 0], [0, 0, 1], [0, 0, 1]])
    assert torch.equal(shares, expected)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (97, 61), (30, 111), (8, 8), (5, 3)])
@pytest.mark.parametrize("grid", [2, 4, 7])
def test_patch_labels__equal_pooling_of_the_one_hot_mask(
    height: int, width: int, grid: int
) -> None:
    generator = np.random.default_rng(0)
    mask = generator.integers(0, 6, (height, width)).astype(np.uint8)
    mask[mask == 5] = 255
    one_hot = np.stack([mask == label for label in range(5)]).astype(np.float32)
    expected = F.adaptive_avg_pool2d(torch.from_numpy(one_hot), grid).flatten(1).T
    assert torch.equal(patch_labels(mask, num_classes=5, grid=grid), expected)


def test_segment__nearest_patch_wins() -> None:
    scores = torch.eye(4)  # 4 patches in a 2 x 2 grid, each of its own class
    assert segment(scores, (4, 4)).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2


@pytest.mark.parametrize(
    ("num_classes", "side", "shape"),
    [(29, 24, (96, 128)), (3, 12, (97, 61)), (20, 8, (5, 7)), (2, 1, (3, 3)), (4, 6, (1, 50))],
)
def test_segment__strips_equal_the_whole(
    num_classes: int, side: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.rand(side**2, num_classes, generator=torch.Generator().manual_seed(0))
    maps = scores.T.reshape(1, -1, side, side)
    upsampled = F.interpolate(maps, size=shape, mode="bilinear", align_corners=False)[0]
    whole = segment(scores, shape)
    assert np.array_equal(whole, upsampled.max(0).indices.numpy())
    monkeypatch.setattr(patch_segmentation, "SCORE_BYTES", 1000)
    assert np.array_equal(segment(scores, shape), whole)
    strip = patch_segmentation._strip(maps[0], (shape[0] // 2, shape[0]), shape)
    torch.testing.assert_close(strip, upsampled[:, shape[0] // 2 :], atol=1e-6, rtol=0)


def test_run__heads_of_a_row_share_tokens_of_the_store(tmp_path: Path) -> None:
    """Also in another process; damaged ones are made again."""
    write_scenes(tmp_path / "halves")
    first = context(tmp_path, KnnSegmentation(), classes="classes.json")
    expected = KnnSegmentation().run(first)
    for protocol in (LinearSegmentation(), KnnSegmentation()):
        counting = Counting(first.backbone)
        again = replace(
            context(tmp_path, protocol, classes="classes.json"),
            backbone=counting,
            features=FeatureStore(first.workspace.features),
        )
        found = protocol.run(again)
        assert counting.images == 4  # windows of one image, which says how many fit into a file
    assert found.metrics == expected.metrics
    assert found.outcomes.equals(expected.outcomes)
    for file in first.workspace.features.rglob("*.safetensors"):
        file.write_bytes(b"damaged")
    repaired = replace(again, features=FeatureStore(first.workspace.features))
    assert KnnSegmentation().run(repaired).outcomes.equals(expected.outcomes)


def test_run__more_images_than_fit_into_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "halves")
    expected = KnnSegmentation().run(context(tmp_path, KnnSegmentation(), classes="classes.json"))
    monkeypatch.setattr(patch_segmentation, "STORED_BYTES", 1)
    monkeypatch.setattr(patch_segmentation, "IMAGES_AT_ONCE", 3)
    for features in (FeatureStore(), FeatureStore(tmp_path / "parts")):
        one = context(tmp_path, KnnSegmentation(), classes="classes.json")
        found = KnnSegmentation().run(replace(one, features=features))
        assert found.metrics["mean_iou"].value == pytest.approx(
            expected.metrics["mean_iou"].value, abs=1e-3
        )
    assert len(list((tmp_path / "parts").rglob("*.safetensors"))) == 3  # two of tokens, a bank


def test_count_pixels__by_hand() -> None:
    labels = np.array([[0, 0, 1], [1, 255, 1]])
    counts = count_pixels(np.array([[0, 1, 1], [1, 0, 0]]), labels, 3)
    assert {key: value.tolist() for key, value in counts.items()} == {
        "intersection": [1, 2, 0],
        "predicted": [2, 3, 0],
        "labelled": [2, 3, 0],
    }


def test_read_mask__values(tmp_path: Path) -> None:
    file = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 1], [3, 2]], np.uint8)).save(file)
    assert read_mask(file, num_classes=3).tolist() == [[255, 0], [2, 1]]
    with pytest.raises(DataError, match=r"no mask of 2 classes: it has the value 3"):
        read_mask(file, num_classes=2)
    file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"mask\.png is no readable mask"):
        read_mask(file, num_classes=2)


class Counting:
    """A backbone that counts the images it sees."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.images = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._backbone, name)

    def patch_tokens(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return self._backbone.patch_tokens(images)


class Scaled:
    """A backbone with its patch tokens multiplied."""

    def __init__(self, backbone: Backbone, factor: float) -> None:
        self._backbone = backbone
        self._factor = factor

    def __getattr__(self, name: str) -> object:
        return getattr(self._backbone, name)

    def patch_tokens(self, images: torch.Tensor) -> torch.Tensor:
        return self._backbone.patch_tokens(images) * self._factor


def test_run__tokens_beyond_half_precision_give_the_same_segments(tmp_path: Path) -> None:
    write_scenes(tmp_path / "halves")
    small = context(tmp_path, KnnSegmentation(), classes="classes.json")
    large = replace(small, backbone=Scaled(small.backbone, 1e6), features=FeatureStore())
    expected, found = KnnSegmentation().run(small), KnnSegmentation().run(large)
    assert found.metrics["mean_iou"].value == pytest.approx(
        expected.metrics["mean_iou"].value, abs=0.02
    )


def test_run__tokens_that_are_not_finite_name_row_and_images(tmp_path: Path) -> None:
    write_scenes(tmp_path / "halves")
    good = context(tmp_path, KnnSegmentation(), classes="classes.json")
    with torch.no_grad():
        next(good.backbone.model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"random.*First: '.*'"):
        KnnSegmentation().run(good)


def test_run__scores_that_are_not_finite_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "halves")
    protocol = KnnSegmentation()
    monkeypatch.setattr(
        protocol, "scorer", lambda context, n: (lambda tokens: tokens[:, :n] * torch.nan, {})
    )
    with pytest.raises(NonFiniteError, match=r"144 of 144 rows of the patch scores of "):
        protocol.run(context(tmp_path, protocol, classes="classes.json"))


def test_run__masks_without_labels(tmp_path: Path) -> None:
    write_scenes(tmp_path / "halves")
    for mask in (tmp_path / "halves/annotations/training").iterdir():
        Image.fromarray(np.zeros((96, 96), np.uint8)).save(mask)
    with pytest.raises(DataError, match="no patch of 12 images is labelled"):
        KnnSegmentation().run(context(tmp_path, KnnSegmentation(), classes="classes.json"))


@pytest.mark.parametrize("num", [1, 1999, 2000, 2001, 3000, 3999, 4001, 20210])
def test_evenly_spaced__reaches_over_the_whole_range(num: int) -> None:
    indices = evenly_spaced(num, 2000)
    assert len(indices) == len(set(indices)) == min(num, 2000)
    steps = np.diff([*indices, num])
    assert indices[0] == 0
    assert steps.max() - steps.min() <= 1
