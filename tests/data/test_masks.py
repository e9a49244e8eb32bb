"""One mask rule, one pairing, and counting instead of one-hot masks."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskclip_bench.data.masks import (
    check_mask_values,
    class_shares,
    mask_values,
    pair_masks,
    read_mask,
)
from maskclip_bench.errors import DataError


def save(path: Path, values: list[list[int]], mode: str = "L") -> Path:
    image = Image.fromarray(np.array(values, np.uint8))
    if mode == "P":
        image.putpalette([value % 256 for value in range(7, 7 + 768)])
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "P"])
def test_values__zero_and_255_are_unlabelled(mode: str, tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", [[0, 1], [2, 255]], mode)
    assert read_mask(path, num_classes=2).tolist() == [[255, 0], [1, 255]]
    check_mask_values([path], num_classes=2)


@pytest.mark.parametrize("stray", [3, 40, 254])
def test_values__above_the_classes_are_refused_before_and_while_training(
    stray: int, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    save(good, [[0, 1], [2, 255]])
    save(bad, [[0, 1], [2, stray]])
    says = rf"bad\.png is no mask of 2 classes: it has the value {stray}"
    with pytest.raises(DataError, match=says):
        read_mask(bad, num_classes=2)
    with pytest.raises(DataError, match=says):
        check_mask_values([good, bad], num_classes=2)


def test_values__far_above_all_others_without_a_number_of_classes(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", [[0, 1], [2, 255]])
    check_mask_values([good], num_classes=None)
    bad = save(tmp_path / "bad.png", [[0, 1], [2, 40]])
    with pytest.raises(DataError, match=r"bad\.png has the value 40, and all 2 masks together"):
        check_mask_values([good, bad], num_classes=None)
    check_mask_values([good, bad], num_classes=40)


@pytest.mark.parametrize("num_classes", [0, 255])
def test_classes__that_8_bits_cannot_hold(num_classes: int, tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", [[0, 1]])
    with pytest.raises(DataError, match="1 to 254 classes"):
        read_mask(path, num_classes=num_classes)


def test_mask__that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    with pytest.raises(DataError, match=r"is no readable mask .*no such file"):
        mask_values(path)
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match="is no readable mask"):
        mask_values(path)
    Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(DataError, match="is no mask: it has the shape"):
        mask_values(path)
    Image.fromarray(np.full((2, 2), -1, np.int32)).save(tmp_path / "mask.tif")
    with pytest.raises(DataError, match="has values below 0"):
        mask_values(tmp_path / "mask.tif")
    Image.fromarray(np.full((2, 2), 40_000, np.uint16)).save(path)
    with pytest.raises(DataError, match="it has the value 40000"):
        read_mask(path, num_classes=3)


def test_pairs__suffixes(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for name in ("a.jpg", "b.JPG"):
        Image.new("RGB", (2, 2)).save(images / name)
        save(masks / f"{name[0]}.png", [[0, 1]])
    files, found, left_over = pair_masks(images, masks)
    assert [file.name for file in files] == ["a.jpg", "b.JPG"]
    assert [path.name for path in found] == ["a.png", "b.png"]
    assert not left_over
    files, found, left_over = pair_masks(images, masks, image_suffix=".jpg")
    assert [path.name for path in found] == ["a.png"]
    assert left_over.to_json() == {
        "images with another suffix than the config's img_suffix": {"count": 1, "first": ["b.JPG"]},
        "masks without an image": {"count": 1, "first": ["b.png"]},
    }


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(8, 8, 4), (7, 13, 4), (3, 5, 8), (33, 47, 9)]
)
def test_class_shares__equal_pooled_one_hot_masks(height: int, width: int, grid: int) -> None:
    generator = np.random.default_rng(0)
    mask = generator.integers(0, 6, (height, width)).astype(np.uint8)
    mask[mask == 5] = 255
    one_hot = F.one_hot(torch.from_numpy(mask.astype(np.int64)).clamp(max=5), 6)[..., :5]
    pooled = F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1).float(), grid)
    expected = pooled.flatten(1).T
    assert torch.equal(torch.from_numpy(class_shares(mask, 5, grid)), expected)


def test_class_shares__large_mask_is_quick() -> None:
    mask = np.random.default_rng(0).integers(0, 150, (512, 683)).astype(np.uint8)
    class_shares(mask, 150, 28)
    began = time.process_time()
    shares = class_shares(mask, 150, 28)
    assert time.process_time() - began < 0.3  # 5 ms; the one-hot mask took more than a second
    assert np.allclose(shares.sum(1), 1)
