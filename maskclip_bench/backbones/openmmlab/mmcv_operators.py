"""Operators of mmcv that detectors train with on a GPU, in torch and torchvision.

mmcv has a CPU version of some of them, and calls its compiled module for CUDA tensors only: such a
config would run on a CPU and stop on a GPU. Here one function serves both.

| operator | made of | used by |
| --- | --- | --- |
| `ms_deform_attn_*` | `grid_sample` (Zhu et al., 2021, arXiv 2010.04159) | Mask2Former, DINO-DETR |
| `sigmoid_focal_loss_*`, `softmax_focal_loss_*` | torch (Lin et al., 2017) | RetinaNet, FCOS |
| `deform_conv_*`, `modulated_deform_conv_*` | torchvision's `deform_conv2d` | DCN v1, v2 |
| `roi_pool_*` | gathers of cells, then a maximum | Fast R-CNN |
| `bbox_overlaps` | torch | matching |

Argument names, order, and outputs that are written in place are mmcv's (2.3.6, `mmcv/ops/*.py`;
formulas of `mmcv/ops/csrc/common/cuda/*.cuh`). 16-bit inputs are computed in float32; float64
stays. Gradients are torch's own, of the forward pass computed again. Nothing here imports mmcv.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from maskclip_bench.backbones.openmmlab.deform_conv_borders import without_borders

GATHERED = 2**24
"""Values that RoI pooling gathers at a time."""


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float64 stays; everything else is computed in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def write_gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad_output: Tensor,
    outputs: Sequence[Tensor | None],
) -> None:
    """Gradients of `function(*inputs)` into `outputs`, where one is given for an input."""
    dtype = compute_dtype(grad_output)
    with torch.enable_grad(), torch.autocast(grad_output.device.type, enabled=False):
        leaves = [
            value.detach().to(dtype).requires_grad_(output is not None)
            for value, output in zip(inputs, outputs, strict=True)
        ]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        gradients = torch.autograd.grad(
            function(*leaves), wanted, grad_output.to(dtype), allow_unused=True
        )
    targets = [output for output in outputs if output is not None]
    for target, gradient in zip(targets, gradients, strict=True):
        if gradient is None:
            target.zero_()
        else:
            target.copy_(gradient)


# --- multi-scale deformable attention -------------------------------------------------------------


def _ms_deform_attn(
    value: Tensor, locations: Tensor, weights: Tensor, *, shapes: Sequence[Sequence[int]]
) -> Tensor:
    """B images, Q queries, H heads, L levels, P points, D width of a head, K cells of all levels.

    Args:
        value: [B, K, H, D].
        locations: [B, Q, H, L, P, 2], x and y from 0 to 1.
        weights: [B, Q, H, L, P].
        shapes: (height, width) of each level.

    Returns:
        [B, Q, H * D].
    """
    num_images, _, num_heads, width = value.shape
    num_queries = locations.shape[1]
    grids = 2 * locations - 1
    sampled = []
    levels = value.split([height * wide for height, wide in shapes], dim=1)
    for index, ((height, wide), level) in enumerate(zip(shapes, levels, strict=True)):
        maps = level.permute(0, 2, 3, 1).reshape(num_images * num_heads, width, height, wide)
        grid = grids[:, :, :, index].transpose(1, 2).flatten(0, 1)  # [B * H, Q, P, 2]
        sampled.append(
            F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        )  # [B * H, D, Q, P]
    shares = weights.transpose(1, 2).reshape(num_images * num_heads, 1, num_queries, -1)
    summed = (torch.stack(sampled, dim=-2).flatten(-2) * shares).sum(-1)  # [B * H, D, Q]
    return summed.reshape(num_images, num_heads * width, num_queries).transpose(1, 2)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """See `_ms_deform_attn`; the start indices follow from the shapes, the step is only speed."""
    dtype = compute_dtype(value)
    parts = [part.to(dtype) for part in (value, sampling_locations, attention_weights)]
    with torch.autocast(value.device.type, enabled=False):
        result = _ms_deform_attn(*parts, shapes=value_spatial_shapes.tolist())
    return result.to(value.dtype).contiguous()


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients for values, locations and weights."""
    shapes = value_spatial_shapes.tolist()
    write_gradients(
        lambda *parts: _ms_deform_attn(*parts, shapes=shapes),
        [value, sampling_locations, attention_weights],
        grad_output,
        [grad_value, grad_sampling_loc, grad_attn_weight],
    )


# --- focal losses ---------------------------------------------------------------------------------


def _sigmoid_focal_loss(
    logits: Tensor, *, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    """Loss of each class: -alpha (1 - p)^gamma log p for the target, the reverse for others.

    Args:
        logits: [N, C].
        target: int64 [N]; C is the background.
        weight: [C] of the target's class, or empty.
        gamma: Of the factor that turns easy examples down.
        alpha: Weight of the target's class.

    Returns:
        [N, C].
    """
    hot = F.one_hot(target, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    right, wrong = F.logsigmoid(logits), F.logsigmoid(-logits)
    loss = -hot * alpha * wrong.exp() ** gamma * right
    loss = loss - (1 - hot) * (1 - alpha) * right.exp() ** gamma * wrong
    return loss if not weight.numel() else loss * _class_weight(weight, target)[:, None]


def _class_weight(weight: Tensor, target: Tensor) -> Tensor:
    """Weight of each target's class [N]; the background has weight 1."""
    return torch.cat([weight, weight.new_ones(1)])[target]


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """See `_sigmoid_focal_loss`."""
    dtype = compute_dtype(input)
    output.copy_(
        _sigmoid_focal_loss(
            input.to(dtype), target=target, weight=weight.to(dtype), gamma=gamma, alpha=alpha
        )
    )


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of each loss for its own logit, [N, C]."""
    weight = weight.to(compute_dtype(input))
    write_gradients(
        lambda logits: _sigmoid_focal_loss(
            logits, target=target, weight=weight, gamma=gamma, alpha=alpha
        ),
        [input],
        torch.ones_like(input),
        [grad_input],
    )


def _softmax_focal_loss(
    shares: Tensor, *, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    """-alpha (1 - p)^gamma log p of the target's share p; shares [N, C] -> [N]."""
    share = shares.gather(1, target[:, None])[:, 0].clamp(min=torch.finfo(shares.dtype).tiny)
    loss = -alpha * (1 - share) ** gamma * share.log()
    return loss if not weight.numel() else loss * _class_weight(weight, target)


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """`input` are shares after softmax, [N, C]; `output` is [N]."""
    dtype = compute_dtype(input)
    output.copy_(
        _softmax_focal_loss(
            input.to(dtype), target=target, weight=weight.to(dtype), gamma=gamma, alpha=alpha
        )
    )


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Gradient for the logits [N, C], of which `input` are the shares."""
    weight = weight.to(compute_dtype(input))
    write_gradients(
        lambda logits: _softmax_focal_loss(
            logits.softmax(dim=1), target=target, weight=weight, gamma=gamma, alpha=alpha
        ),
        [input.to(compute_dtype(input)).clamp(min=1e-30).log()],
        input.new_ones(len(input)),
        [grad_input],
    )


# --- deformable convolution -----------------------------------------------------------------------


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **sizes: int,
) -> None:
    """Deformable convolution v1 (Dai et al., 2017) of `input` [B, C, H, W] into `output`."""
    dtype = compute_dtype(input)
    parts = [part.to(dtype) for part in (input, offset, weight)]
    output.copy_(deform_conv2d(*parts, **_v1(sizes)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Gradients for input and offsets."""
    write_gradients(
        lambda *parts: deform_conv2d(*parts, **_v1(sizes)),
        [input, offset, weight],
        gradOutput,
        [gradInput, gradOffset, None],
    )
    gradOffset.copy_(_without_borders(gradOffset, offset, input, weight, **_v1(sizes)))


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float = 1,
    **sizes: int,
) -> None:
    """Gradient for the kernel, times `scale`."""
    write_gradients(
        lambda *parts: scale * deform_conv2d(*parts, **_v1(sizes)),
        [input, offset, torch.zeros_like(gradWeight)],  # linear in the kernel
        gradOutput,
        [None, None, gradWeight],
    )


def _v1(sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "stride": (sizes["dH"], sizes["dW"]),
        "padding": (sizes["padH"], sizes["padW"]),
        "dilation": (sizes["dilationH"], sizes["dilationW"]),
    }


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Deformable convolution v2 (Zhu et al., 2019): also a factor for each sampled value."""
    dtype = compute_dtype(input)
    parts = [part.to(dtype) for part in (input, offset, weight, mask, bias)]
    output.copy_(_modulated(*parts, with_bias=with_bias, sizes=sizes))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Gradients for input, kernel, bias, offsets and factors."""
    write_gradients(
        lambda *parts: _modulated(*parts, with_bias=with_bias, sizes=sizes),
        [input, offset, weight, mask, bias],
        grad_output,
        [grad_input, grad_offset, grad_weight, grad_mask, grad_bias if with_bias else None],
    )
    grad_offset.copy_(_without_borders(grad_offset, offset, input, weight, **_v2(sizes)))


def _modulated(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor,
    *,
    with_bias: bool,
    sizes: dict[str, int],
) -> Tensor:
    return deform_conv2d(
        input,
        offset,
        weight,
        bias if with_bias else None,
        mask=mask,
        **_v2(sizes),
    )


def _v2(sizes: dict[str, int]) -> dict[str, Any]:
    return {
        name: (sizes[f"{short}_h"], sizes[f"{short}_w"])
        for name, short in (("stride", "stride"), ("padding", "pad"), ("dilation", "dilation"))
    }


def _without_borders(
    grad_offset: Tensor, offset: Tensor, input: Tensor, weight: Tensor, **layout: Any
) -> Tensor:
    image, kernel = tuple(input.shape[-2:]), tuple(weight.shape[-2:])
    return without_borders(grad_offset, offset, image, kernel, **layout)


# --- RoI pooling, overlaps ------------------------------------------------------------------------


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum of the cells of each bin, as mmcv's CUDA kernel bounds them.

    A box ends one pixel after its last; bins are not rounded before they are cut: from
    floor(start) to ceil(end). (torchvision's operator rounds the box first.)

    Args:
        input: [B, C, H, W].
        rois: [R, 5].
        output: [R, C, h, w], 0 where a bin is empty.
        argmax: int32, the same shape: index into H * W of the maximum, -1 where a bin is empty.
        pooled_height: h.
        pooled_width: w.
        spatial_scale: Cells a pixel.
    """
    height, width = input.shape[-2:]
    boxes = rois[:, 1:].float()
    ends = (boxes[:, 2:] + 1) * spatial_scale
    starts = boxes[:, :2] * spatial_scale
    whole = ((ends - starts) > 0).all(dim=1)  # [R]
    columns, in_columns = _bin_cells(starts[:, 0], ends[:, 0], pooled_width, width)
    rows, in_rows = _bin_cells(starts[:, 1], ends[:, 1], pooled_height, height)
    cells = rows.shape[-1] * columns.shape[-1] * pooled_height * pooled_width
    at_once = max(1, GATHERED // max(cells * input.shape[1], 1))
    for part in torch.arange(len(rois), device=rois.device).split(at_once):
        index = rows[part][:, :, None, :, None] * width + columns[part][:, None, :, None, :]
        inside = in_rows[part][:, :, None, :, None] & in_columns[part][:, None, :, None, :]
        inside &= whole[part][:, None, None, None, None]
        index, inside = index.flatten(3), inside.flatten(3)  # [r, h, w, cells of a bin]
        maps = input[rois[part, 0].long()].flatten(2)  # [r, C, H * W]
        values = maps.gather(2, index.flatten(1)[:, None].expand(-1, maps.shape[1], -1))
        values = values.unflatten(2, index.shape[1:]).float()
        best, position = values.masked_fill(~inside[:, None], -torch.inf).max(dim=-1)
        empty = ~inside.any(dim=-1)[:, None].expand_as(best)
        where = index[:, None].expand(-1, maps.shape[1], -1, -1, -1)
        where = where.gather(-1, position[..., None])[..., 0]
        output[part] = best.masked_fill(empty, 0).to(output.dtype)
        argmax[part] = where.masked_fill(empty, -1).to(argmax.dtype)


def _bin_cells(starts: Tensor, ends: Tensor, number: int, size: int) -> tuple[Tensor, Tensor]:
    """Cells of the bins along one side, int64 [R, bins, most cells], and which are in them."""
    step = ((ends - starts) / number)[:, None]  # [R, 1]
    bins = torch.arange(number, device=starts.device)
    first = (bins * step + starts[:, None]).floor().long().clamp(0, size)
    last = ((bins + 1) * step + starts[:, None]).ceil().long().clamp(0, size)
    most = max(int((last - first).max()), 1) if len(starts) else 1
    cells = first[..., None] + torch.arange(most, device=starts.device)
    return cells.clamp(max=size - 1), cells < last[..., None]


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """The gradient of a bin goes to its maximum."""
    num_images, channels, height, width = grad_input.shape
    found = argmax >= 0
    image = rois[:, 0].long()[:, None, None, None] * channels
    channel = torch.arange(channels, device=rois.device)[None, :, None, None]
    index = (image + channel) * (height * width) + argmax.long()
    total = torch.zeros(
        num_images * channels * height * width,
        dtype=compute_dtype(grad_output),
        device=grad_input.device,
    )
    total.index_add_(0, index[found], grad_output[found].to(total.dtype))
    grad_input.copy_(total.view_as(grad_input))


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """IoU, or (mode 1) the share of the first box, of boxes [M, 4] and [N, 4] into `ious`."""
    first, second = bboxes1.float(), bboxes2.float()
    if not aligned:
        first = first[:, None]
    corner = torch.maximum(first[..., :2], second[..., :2])
    other = torch.minimum(first[..., 2:], second[..., 2:])
    inner = (other - corner + offset).clamp(min=0).prod(dim=-1)
    own = (first[..., 2:] - first[..., :2] + offset).prod(dim=-1)
    if mode == 0:
        own = own + (second[..., 2:] - second[..., :2] + offset).prod(dim=-1) - inner
    ious.copy_(inner / own.clamp(min=offset))


OPERATORS: tuple[Callable[..., Any], ...] = (
    ms_deform_attn_forward,
    ms_deform_attn_backward,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    softmax_focal_loss_forward,
    softmax_focal_loss_backward,
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
    roi_pool_forward,
    roi_pool_backward,
    bbox_overlaps,
)
