"""What mmcv calls for CUDA tensors, called here on the CPU, against plain formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from maskclip_bench.backbones.openmmlab import mmcv_kernels

ops = (
    pytest.importorskip("mmcv.ops", reason="mmcv is not installed")
    if (mmcv_kernels.install() != mmcv_kernels.NO_KERNELS)
    else pytest.skip("mmcv is not installed", allow_module_level=True)
)

TYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same_with_gradients(
    found: Callable[..., Tensor], expected: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    """Equal outputs, and equal gradients for all inputs."""
    results = []
    for function in (found, expected):
        leaves = [value.clone().requires_grad_() for value in inputs]
        output = function(*leaves)
        (output * random(*output.shape, seed=9)).sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def deformable(num_levels: int = 2) -> tuple[list[Tensor], Tensor, Tensor]:
    shapes = torch.tensor([[4, 6], [2, 3]][:num_levels])
    starts = torch.tensor([0, 24][:num_levels])
    value = random(2, int(shapes.prod(1).sum()), 2, 4)
    locations = torch.rand(
        2, 5, 2, num_levels, 3, 2, generator=torch.Generator().manual_seed(1)
    ) * 1.4 - 0.2  # some outside  # fmt: skip
    weights = random(2, 5, 2, num_levels, 3, seed=2)
    return [value, locations, weights], shapes, starts


@pytest.mark.parametrize("num_levels", [1, 2])
def test_ms_deform_attn__as_mmcvs_own_code_for_a_cpu(num_levels: int) -> None:
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    inputs, shapes, starts = deformable(num_levels)
    same_with_gradients(
        lambda *parts: MultiScaleDeformableAttnFunction.apply(
            parts[0], shapes, starts, parts[1], parts[2], 64
        ),
        lambda *parts: multi_scale_deformable_attn_pytorch(parts[0], shapes, parts[1], parts[2]),
        inputs,
    )


def focal_by_hand(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        shares = torch.sigmoid(row)
        rows.append(
            torch.stack([
                -alpha * (1 - p) ** gamma * torch.log(p)
                if index == label
                else -(1 - alpha) * p**gamma * torch.log(1 - p)
                for index, p in enumerate(shares)
            ])
        )  # fmt: skip
    return torch.stack(rows)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
def test_sigmoid_focal_loss__by_hand(gamma: float, alpha: float) -> None:
    target = torch.tensor([0, 2, 3, 1])  # 3 is the background
    same_with_gradients(
        lambda logits: ops.sigmoid_focal_loss(logits, target, gamma, alpha, None, "sum")[None],
        lambda logits: focal_by_hand(logits, target, gamma, alpha).sum()[None],
        [random(4, 3)],
    )


def test_sigmoid_focal_loss__weights_and_extremes() -> None:
    target, weight = torch.tensor([0, 2, 3]), torch.tensor([1.0, 2.0, 5.0])
    logits = random(3, 3)
    plain = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none")
    weighted = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "none")
    torch.testing.assert_close(weighted, plain * torch.tensor([[1.0], [5.0], [1.0]]))
    far = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    ops.sigmoid_focal_loss(far, torch.tensor([1]), 2.0, 0.25, None, "sum").backward()
    assert torch.isfinite(far.grad).all()


def test_softmax_focal_loss__by_hand() -> None:
    target = torch.tensor([0, 2])
    logits = random(2, 3).requires_grad_()
    shares = logits.softmax(1)[torch.arange(2), target]
    expected = (-0.25 * (1 - shares) ** 2 * shares.log()).sum()
    (gradient,) = torch.autograd.grad(expected, logits)
    found = ops.softmax_focal_loss(logits, target, 2.0, 0.25, None, "none")
    torch.testing.assert_close(found.sum(), expected)
    for row in range(2):  # mmcv multiplies rows of gradients by a number alone
        single = logits.detach()[row : row + 1].clone().requires_grad_()
        ops.softmax_focal_loss(single, target[row : row + 1], 2.0, 0.25, None, "sum").backward()
        torch.testing.assert_close(single.grad[0], gradient[row], atol=1e-6, rtol=1e-4)


def convolved_by_hand(
    maps: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, groups: int
) -> Tensor:
    """3x3, padding 1, stride 1: sample each tap with grid_sample, then a product."""
    channels, height, width = maps.shape[1:]
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=maps.dtype), torch.arange(width, dtype=maps.dtype), indexing="ij"
    )
    per_group = channels // groups
    taps = []
    for tap in range(9):
        sampled = []
        for group in range(groups):
            at = 2 * (group * 9 + tap)
            y = rows + tap // 3 - 1 + offset[:, at]
            x = columns + tap % 3 - 1 + offset[:, at + 1]
            grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
            part = maps[:, group * per_group : (group + 1) * per_group]
            value = torch.nn.functional.grid_sample(part, grid, align_corners=False)
            if mask is not None:
                value = value * mask[:, group * 9 + tap][:, None]
            sampled.append(value)
        taps.append(torch.cat(sampled, dim=1))
    stacked = torch.stack(taps, dim=2)  # [B, C, 9, H, W]
    return torch.einsum("bckhw,ock->bohw", stacked, weight.flatten(2))


@pytest.mark.parametrize("groups", [1, 2])
def test_deform_conv__by_hand(groups: int) -> None:
    inputs = [random(2, 4, 5, 6), random(2, 18 * groups, 5, 6, seed=1), random(3, 4, 3, 3, seed=2)]
    same_with_gradients(
        lambda maps, offset, weight: ops.deform_conv2d(maps, offset, weight, 1, 1, 1, 1, groups),
        lambda maps, offset, weight: convolved_by_hand(maps, offset, weight, None, groups),
        inputs,
    )


@pytest.mark.parametrize("with_bias", [True, False])
def test_modulated_deform_conv__by_hand(with_bias: bool) -> None:
    inputs = [
        random(2, 4, 5, 6),
        random(2, 18, 5, 6, seed=1),
        random(2, 9, 5, 6, seed=3).sigmoid(),
        random(3, 4, 3, 3, seed=2),
        *([random(3, seed=4)] if with_bias else []),
    ]

    def found(
        maps: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        return ops.modulated_deform_conv2d(maps, offset, mask, weight, bias, 1, 1, 1, 1, 1)

    def expected(
        maps: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        output = convolved_by_hand(maps, offset, weight, mask, 1)
        return output if bias is None else output + bias[:, None, None]

    same_with_gradients(found, expected, inputs)


def pooled_by_hand(maps: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Loops over boxes and bins with mmcv's bounds."""
    height, width = maps.shape[-2:]
    outputs = []
    for image, x1, y1, x2, y2 in rois.tolist():
        left, top = x1 * scale, y1 * scale
        wide, high = (x2 + 1) * scale - left, (y2 + 1) * scale - top
        bins = maps.new_zeros(maps.shape[1], size, size)
        for row in range(size if min(wide, high) > 0 else 0):
            for column in range(size):
                ys = torch.tensor([row, row + 1]) * (high / size) + top
                xs = torch.tensor([column, column + 1]) * (wide / size) + left
                a, b = max(int(ys[0].floor()), 0), min(int(ys[1].ceil()), height)
                c, d = max(int(xs[0].floor()), 0), min(int(xs[1].ceil()), width)
                if b > a and d > c:
                    bins[:, row, column] = maps[int(image), :, a:b, c:d].amax(dim=(1, 2))
        outputs.append(bins)
    return torch.stack(outputs)


ROIS = torch.tensor(
    [[0, 0, 0, 7, 7], [1, 3, 1, 12, 9], [1, -4, -4, 30, 30], [0, 5, 5, 4, 4], [0, 20, 20, 30, 30]],
    dtype=torch.float32,
)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_roi_pool__by_hand(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskclip_bench.backbones.openmmlab import mmcv_operators

    maps = random(2, 3, 9, 8)
    function = lambda maps: ops.roi_pool(maps, ROIS, 3, scale)  # noqa: E731
    same_with_gradients(function, lambda maps: pooled_by_hand(maps, ROIS, 3, scale), [maps])
    whole = function(maps)
    monkeypatch.setattr(mmcv_operators, "GATHERED", 1)  # one box at a time
    assert torch.equal(function(maps), whole)
    assert ops.roi_pool(maps, ROIS[:0], 3, scale).shape == (0, 3, 3, 3)


@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
def test_bbox_overlaps__as_mmcvs_own_code(mode: str, aligned: bool, offset: int) -> None:
    from mmcv.ops.bbox import _bbox_overlaps_cpu

    corners = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) * 10
    corners[..., 2:] += corners[..., :2] + 1
    found = ops.bbox_overlaps(corners[0], corners[1], mode, aligned, offset)
    expected = _bbox_overlaps_cpu(corners[0], corners[1], mode, aligned, offset)
    torch.testing.assert_close(found, expected)
    assert (ops.bbox_overlaps(corners[0], corners[0], aligned=True, offset=offset) == 1).all()


def calls(dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    parts, shapes, starts = deformable()
    target = torch.tensor([0, 2, 3, 1])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    scores = torch.tensor([0.9, 0.8, 0.7])

    def made(*values: Tensor) -> list[Tensor]:
        return [value.to(dtype).requires_grad_() for value in values]

    def attention() -> Tensor:
        value, locations, weights = made(*parts)
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)

    def soft_nms() -> Tensor:
        return ops.soft_nms(boxes.to(dtype), scores.to(dtype))[0][:, 4]

    return {
        "attention": attention,
        "focal": lambda: ops.sigmoid_focal_loss(
            *made(random(4, 3)), target, 2.0, 0.25, None, "sum"
        ),
        "deform": lambda: ops.deform_conv2d(
            *made(random(1, 4, 5, 6), random(1, 18, 5, 6, seed=1), random(3, 4, 3, 3, seed=2)), 1, 1
        ),
        "modulated": lambda: ops.modulated_deform_conv2d(
            *made(
                random(1, 4, 5, 6),
                random(1, 18, 5, 6, seed=1),
                random(1, 9, 5, 6),
                random(3, 4, 3, 3),
            ),
            None, 1, 1, 1, 1, 1,
        ),
        "roi_pool": lambda: ops.roi_pool(*made(random(2, 3, 9, 8)), ROIS.to(dtype), 3, 1.0),
        "roi_align": lambda: ops.roi_align(*made(random(2, 3, 9, 8)), ROIS.to(dtype), 3, 1.0),
        "overlaps": lambda: ops.bbox_overlaps(boxes.to(dtype), boxes.to(dtype)),
        "soft_nms": soft_nms,
        "nms": lambda: ops.nms(boxes.to(dtype), scores.to(dtype), 0.5)[0],
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(calls(torch.float32)))
def test_operators__16_bits(name: str, dtype: torch.dtype) -> None:
    """Computed in float32: what comes out is the rounded result of the rounded inputs."""
    output = calls(dtype)[name]()
    assert output.dtype == dtype
    expected = calls(torch.float32)[name]()
    torch.testing.assert_close(output.float(), expected.detach(), atol=0.15, rtol=0.1)
    if output.requires_grad:
        output.float().sum().backward()


@pytest.mark.parametrize("name", ["attention", "focal", "deform", "modulated", "roi_pool"])
def test_operators__keep_double(name: str) -> None:
    output: Any = calls(torch.float64)[name]()
    assert output.dtype == torch.float64
