"""Patch protocols: labels, tiles and fits against plain versions, and a whole run on toy scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip_bench.backbones.loading import load_backbone
from maskclip_bench.data.dense import count_pixels, read_mask
from maskclip_bench.errors import DataError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.protocols.patch_segmentation import (
    evenly_spaced,
    image_windows,
    join_tiles,
    patch_labels,
    segment,
)

from .scenes import ROW


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


def test_segment__nearest_patch_wins() -> None:
    scores = torch.eye(4)  # 4 patches in a 2 x 2 grid, each of its own class
    assert segment(scores, (4, 4)).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2


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


@pytest.mark.parametrize("num", [1, 1999, 2000, 2001, 3000, 3999, 4001, 20210])
def test_evenly_spaced__reaches_over_the_whole_range(num: int) -> None:
    indices = evenly_spaced(num, 2000)
    assert len(indices) == len(set(indices)) == min(num, 2000)
    steps = np.diff([*indices, num])
    assert indices[0] == 0
    assert steps.max() - steps.min() <= 1
