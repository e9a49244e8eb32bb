"""Gradients for offsets: outside and on the border nothing, inside as torchvision gives them."""

from __future__ import annotations

import torch

from maskclip_bench.backbones.openmmlab.deform_conv_borders import without_borders


def test_without_borders__by_hand() -> None:
    """A 2 x 2 kernel at stride 2 and padding 1 on an image of 3 x 2: outputs at rows -1 and 1."""
    offset = torch.zeros(1, 2 * 4, 2, 1)
    gradient = torch.ones_like(offset)
    layout = {"stride": (2, 2), "padding": (1, 0), "dilation": (1, 1)}
    found = without_borders(gradient, offset, (3, 2), (2, 2), **layout)
    # Points of the kernel: rows -1, -1, 0, 0 of the first output, 1, 1, 2, 2 of the second.
    of_points = found.unflatten(1, (4, 2))[0, :, :, :, 0]  # [K, 2, h]
    assert of_points[:, 0].tolist() == [[0, 1], [0, 1], [1, 1], [1, 1]]
    assert torch.equal(of_points[:, 0], of_points[:, 1])
    moved = offset.clone()
    moved[:, 0] = 0.5  # the first point's row: -0.5 is inside, 1.5 too
    found = without_borders(gradient, moved, (3, 2), (2, 2), **layout)
    assert found[0, 0, :, 0].tolist() == [1, 1]
    moved[:, 1] = 2.0  # its column: on the right border
    assert not without_borders(gradient, moved, (3, 2), (2, 2), **layout)[0, :2].any()


def test_without_borders__groups_are_apart() -> None:
    offset = torch.zeros(2, 2 * 2, 1, 1)  # two groups, a 1 x 1 kernel
    offset[1, 2] = -1.0
    layout = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    found = without_borders(torch.ones_like(offset), offset, (2, 2), (1, 1), **layout)
    assert found.flatten(1).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
