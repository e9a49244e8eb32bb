"""Operators of text detectors, called as `mmcv.ops` calls them, against cases done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskclip_bench.backbones.openmmlab.mmcv_text_operators import (
    bezier_align_backward,
    bezier_align_forward,
    contour_expand,
    pixel_group,
)

SETTINGS: dict[str, Any] = {
    "aligned_height": 2,
    "aligned_width": 4,
    "spatial_scale": 0.5,
    "sampling_ratio": 2,
    "aligned": False,
}


def band(image: int, left: float, top: float, right: float, bottom: float) -> list[float]:
    """Two straight curves; the lower one runs backwards."""
    steps = [left + (right - left) * k / 3 for k in range(4)]
    upper = [value for x in steps for value in (x, top)]
    lower = [value for x in reversed(steps) for value in (x, bottom)]
    return [float(image), *upper, *lower]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0, 2])
def test_bezier_align__of_a_slope_is_its_value_at_the_points(
    dtype: torch.dtype, ratio: int
) -> None:
    rows = torch.arange(20.0)[:, None].expand(20, 24)
    columns = torch.arange(24.0)[None].expand(20, 24)
    maps = torch.stack([torch.stack([rows, columns]), torch.zeros(2, 20, 24)]).to(dtype)
    beziers = torch.tensor([band(0, 8, 4, 40, 20), band(1, 8, 4, 40, 20)], dtype=dtype)
    output = torch.zeros(2, 2, 2, 4, dtype=dtype)
    bezier_align_forward(maps, beziers, output, **{**SETTINGS, "sampling_ratio": ratio})
    assert output[0, 0].tolist() == [[2.0] * 4, [6.0] * 4]  # y: 2 + 8 v
    assert output[0, 1].tolist() == [[4.0, 8.0, 12.0, 16.0]] * 2  # x: 4 + 16 u
    assert not output[1].any()


def test_bezier_align__outside_is_zero_and_no_band_is_no_output() -> None:
    maps = torch.ones(1, 1, 8, 8)
    output = torch.ones(1, 1, 2, 4)
    bezier_align_forward(maps, torch.tensor([band(0, 100, 100, 120, 120)]), output, **SETTINGS)
    assert not output.any()
    empty = torch.zeros(0, 1, 2, 4)
    bezier_align_forward(maps, torch.zeros(0, 17), empty, **SETTINGS)
    assert empty.shape == (0, 1, 2, 4)


def test_bezier_align__backward_is_the_adjoint() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 9, 11, generator=generator, dtype=torch.float64)
    beziers = torch.rand(4, 17, generator=generator, dtype=torch.float64) * 18
    beziers[:, 0] = torch.tensor([0, 1, 1, 0])
    settings = {**SETTINGS, "aligned": True}
    output = torch.zeros(4, 3, 2, 4, dtype=torch.float64)
    bezier_align_forward(maps, beziers, output, **settings)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    gradient = torch.zeros_like(maps)
    bezier_align_backward(weights, beziers, gradient, **settings)
    torch.testing.assert_close((gradient * maps).sum(), (weights * output).sum())


def test_contour_expand__grows_over_the_largest_mask() -> None:
    labels = torch.zeros(3, 6, dtype=torch.int32)
    labels[1, 0], labels[1, 5], labels[0, 3] = 1, 2, 3
    largest = torch.zeros(3, 6, dtype=torch.uint8)
    largest[1] = 1
    masks = torch.stack([largest, (labels > 0).to(torch.uint8)])
    assert contour_expand(masks, labels, 1, 4) == [[0, 0, 0, 3, 0, 0], [1, 1, 3, 3, 2, 2], [0] * 6]
    assert contour_expand(masks, labels, 2, 4) == [[0] * 6] * 3
    assert contour_expand(masks[:1], labels, 1, 4) == labels.tolist()


def test_pixel_group__takes_pixels_like_the_kernel() -> None:
    labels = torch.tensor([[1, 0, 0, 0, 2]], dtype=torch.int32)
    embedding = torch.tensor([[[0.0], [0.1], [5.0], [9.0], [9.1]]])
    score = torch.tensor([[0.5, 0.7, 0.9, 0.6, 0.8]])
    contour = (labels > 0).to(torch.uint8)
    found = pixel_group(score, torch.ones(1, 5).bool(), embedding, labels, contour, 3, 1.0)
    assert found[0] == [0.0, 0.0]
    assert found[1] == pytest.approx([0.6, 2, 0, 0, 1, 0])
    assert found[2] == pytest.approx([0.7, 2, 3, 0, 4, 0])
    masked = pixel_group(score, labels.bool(), embedding, labels, contour, 3, 1.0)
    assert masked[1] == pytest.approx([0.5, 1, 0, 0])
