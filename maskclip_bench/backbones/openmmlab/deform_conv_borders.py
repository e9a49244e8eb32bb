"""Where mmcv's deformable convolutions and torchvision's differ: exactly on the image's border.

A point that is sampled at row -1 or row H (column -1 or W) has the value 0 in both. In mmcv it is
outside, and moving it changes nothing; torchvision gives it the slope towards the image.

B images, G groups of offsets, K points of a kernel, a map of h x w outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def without_borders(
    grad_offset: Tensor,
    offset: Tensor,
    image: tuple[int, int],
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Gradients for offsets, [B, 2 * G * K, h, w], zero for points outside as mmcv counts them.

    Args:
        grad_offset: As torchvision gives them.
        offset: The offsets, (row, column) of each point.
        image: (H, W) of the input.
        kernel: Its (height, width).
        stride: Of the convolution, (rows, columns).
        padding: Likewise.
        dilation: Likewise.
    """
    moved = offset.unflatten(1, (-1, kernel[0] * kernel[1], 2))  # [B, G, K, 2, h, w]
    inside = torch.ones_like(moved[:, :, :, 0], dtype=torch.bool)
    for axis in (0, 1):
        outputs = torch.arange(offset.shape[2 + axis], device=offset.device)
        points = torch.arange(kernel[0] * kernel[1], device=offset.device)
        points = points // kernel[1] if axis == 0 else points % kernel[1]
        place = outputs * stride[axis] - padding[axis] + points[:, None] * dilation[axis]
        place = moved[:, :, :, axis] + (place[:, :, None] if axis == 0 else place[:, None])
        inside &= (place > -1) & (place < image[axis])
    both = inside[:, :, :, None].expand_as(moved).flatten(1, 3)
    return grad_offset * both
