"""mmcv's operators for detectors of text: `bezier_align`, `contour_expand`, `pixel_group`.

The last two run on the CPU in mmcv as well. Formulas and names of arguments are mmcv's
(`mmcv/ops/csrc/pytorch`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskclip_bench.backbones.openmmlab.mmcv_operators import compute_dtype, write_gradients

_NEIGHBORS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def bezier_align_forward(input: Tensor, beziers: Tensor, output: Tensor, **settings: Any) -> None:
    """Average of the map along a band between two cubic Bezier curves (Liu et al., 2020).

    Args:
        input: [B, C, H, W].
        beziers: [R, 17]: image index, four points of the upper curve, four of the lower one, which
            runs backwards.
        output: [R, C, h, w].
        settings: mmcv's `aligned_height`, `aligned_width`, `spatial_scale`, `sampling_ratio`,
            `aligned`.
    """
    dtype = compute_dtype(input)
    output.copy_(_bezier_align(input.to(dtype), beziers.to(dtype), settings))


def bezier_align_backward(
    grad_output: Tensor, beziers: Tensor, grad_input: Tensor, **settings: Any
) -> None:
    """Gradient for the map; the operator is linear in it."""
    curves = beziers.to(compute_dtype(grad_output))
    zeros = torch.zeros_like(grad_input)
    write_gradients(
        lambda maps: _bezier_align(maps, curves, settings), [zeros], grad_output, [grad_input]
    )


def _bezier_align(maps: Tensor, beziers: Tensor, settings: dict[str, Any]) -> Tensor:
    parts = [_along_curves(maps, curve, settings) for curve in beziers]
    size = (settings["aligned_height"], settings["aligned_width"])
    return torch.stack(parts) if parts else maps.new_zeros((0, maps.shape[1], *size))


def _along_curves(maps: Tensor, bezier: Tensor, settings: dict[str, Any]) -> Tensor:
    """One band -> [C, h, w]."""
    rows, columns = settings["aligned_height"], settings["aligned_width"]
    scale, ratio = settings["spatial_scale"], settings["sampling_ratio"]
    points = bezier[1:].reshape(8, 2) * scale  # (x, y)
    upper, lower = points[:4], points[4:].flip(0)
    sides = torch.maximum((upper[0] - upper[3]).abs(), (lower[0] - lower[3]).abs())
    if not settings["aligned"]:
        sides = sides.clamp(min=1)
    u = torch.arange(columns, device=maps.device, dtype=maps.dtype)[:, None] / columns
    v = torch.arange(rows, device=maps.device, dtype=maps.dtype)[:, None, None] / rows
    powers = [(1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3]
    top, bottom = (
        sum(power * point for power, point in zip(powers, curve, strict=True))
        for curve in (upper, lower)
    )  # [w, 2]
    center = bottom * v + top * (1 - v) - (0.5 if settings["aligned"] else 0.0)  # [h, w, 2]
    cell = sides / sides.new_tensor([columns, rows])
    counts = [ratio if ratio > 0 else math.ceil(size) for size in cell.tolist()]
    steps = [
        (torch.arange(number, device=maps.device, dtype=maps.dtype) + 0.5) / max(number, 1) - 0.5
        for number in counts
    ]
    x = center[..., 0, None, None] + steps[0] * cell[0]  # [h, w, 1, sx]
    y = center[..., 1, None, None] + steps[1][:, None] * cell[1]  # [h, w, sy, 1]
    x, y = torch.broadcast_tensors(x, y)
    sampled = _bilinear(maps[int(bezier[0])], x, y)  # [C, h, w, sy, sx]
    return sampled.sum((3, 4)) / max(counts[0] * counts[1], 1)


def _bilinear(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values of maps [C, H, W] between cells, as RoIAlign takes them -> [C, *x.shape]."""
    height, width = maps.shape[1:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, above = x.long(), y.long()
    right, below = (left + 1).clamp(max=width - 1), (above + 1).clamp(max=height - 1)
    fx, fy = x - left, y - above
    upper = maps[:, above, left] * (1 - fx) + maps[:, above, right] * fx
    lower = maps[:, below, left] * (1 - fx) + maps[:, below, right] * fx
    return (upper * (1 - fy) + lower * fy) * inside


def contour_expand(
    kernel_mask: Tensor, internal_kernel_label: Tensor, min_kernel_area: int, kernel_num: int
) -> list[list[int]]:
    """Labels [H, W] of text kernels, grown over the largest kernel mask (PSENet).

    mmcv grows all rounds over the first mask alone, and so does this.

    Args:
        kernel_mask: uint8 [K, H, W], the largest mask first.
        internal_kernel_label: int32 [H, W], 0 where there is no kernel.
        min_kernel_area: Smaller kernels do not grow, and vanish.
        kernel_num: Number of labels; not used here.
    """
    labels = internal_kernel_label.tolist()
    free = kernel_mask[0].bool().tolist()
    areas = torch.bincount(internal_kernel_label.flatten().long()).tolist()
    grown = [[label if areas[label] >= min_kernel_area else 0 for label in row] for row in labels]
    if len(kernel_mask) > 1:
        seeds = [(i, j) for i, row in enumerate(grown) for j, label in enumerate(row) if label > 0]
        _flood(grown, seeds, lambda i, j, label: free[i][j])
    return grown


def pixel_group(
    score: Tensor,
    mask: Tensor,
    embedding: Tensor,
    kernel_label: Tensor,
    kernel_contour: Tensor,
    kernel_region_num: int,
    distance_threshold: float,
) -> list[list[float]]:
    """Pixels of each text kernel, grown over pixels with an embedding like the kernel's (PAN).

    Args:
        score: float32 [H, W].
        mask: bool [H, W], pixels that may belong to a text.
        embedding: float32 [H, W, D].
        kernel_label: int32 [H, W].
        kernel_contour: uint8 [H, W], pixels from which kernels grow.
        kernel_region_num: Number of labels, with 0.
        distance_threshold: Largest distance of an embedding from its kernel's mean.

    Returns:
        For each label: mean score, number of pixels, then x and y of each; all in one list.
    """
    means = [
        embedding[kernel_label == label].mean(0) for label in range(kernel_region_num)
    ]  # of label 0 nothing is read
    near = torch.stack(
        [((embedding - mean) ** 2).sum(-1) < distance_threshold**2 for mean in means]
    )
    allowed = (near & mask.bool()).tolist()
    labels = kernel_label.tolist()
    starts = (kernel_contour.bool() & (kernel_label > 0)).nonzero().tolist()
    _flood(labels, [(i, j) for i, j in starts], lambda i, j, label: allowed[label][i][j])
    found: list[list[float]] = [[0.0, 0.0] for _ in range(kernel_region_num)]
    values = score.tolist()
    for i, row in enumerate(labels):
        for j, label in enumerate(row):
            if label > 0:
                found[label][0] += values[i][j]
                found[label][1] += 1
                found[label] += [float(j), float(i)]
    for entry in found:
        entry[0] = entry[0] / entry[1] if entry[1] else 0.0
    return found


def _flood(
    labels: list[list[int]],
    seeds: list[tuple[int, int]],
    may_enter: Callable[[int, int, int], bool],
) -> None:
    """Spread labels from the seeds to neighbours without one, in the order they are reached."""
    waiting = deque(seeds)
    while waiting:
        i, j = waiting.popleft()
        for di, dj in _NEIGHBORS:
            y, x = i + di, j + dj
            if not (0 <= y < len(labels) and 0 <= x < len(labels[0])) or labels[y][x] > 0:
                continue
            if may_enter(y, x, labels[i][j]):
                labels[y][x] = labels[i][j]
                waiting.append((y, x))


OPERATORS: tuple[Callable[..., Any], ...] = (
    bezier_align_forward,
    bezier_align_backward,
    contour_expand,
    pixel_group,
)
