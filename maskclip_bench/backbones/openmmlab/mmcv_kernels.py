"""A stand-in for `mmcv._ext`, mmcv's compiled operators, made of torchvision's kernels.

No wheel with compiled operators exists for most pairs of Python and torch, and mmdet cannot be
imported without them. Mask R-CNN needs only NMS and RoIAlign, which are here; `mmcv_operators` has
those of other detectors. All run on CPU and CUDA. `install()` puts a module in the place of the
compiled one, unless there is one; an operator it does not have raises with its name when it is
called, and nothing falls back in silence.

Two things the compiled kernels get wrong are right here: 16-bit inputs (computed in float32) and
channels-last maps (torchvision reads strides; mmcv reads memory as if it were contiguous,
open-mmlab/mmcv#2203).

The argument names and the outputs written in place are those that `mmcv.ops` calls with.
Nothing here imports mmcv.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor

from maskclip_bench.backbones.openmmlab import mmcv_text_operators
from maskclip_bench.backbones.openmmlab.mmcv_operators import OPERATORS, compute_dtype

logger = logging.getLogger(__name__)

MODULE = "mmcv._ext"
STAND_IN = "torchvision stand-in"
COMPILED = "compiled mmcv"
NO_KERNELS = "none"

_MARK = "__maskclip_bench_stand_in__"


def install(*, force: bool = False) -> str:
    """Make `mmcv.ops` importable; returns which kernels a run will use.

    Args:
        force: Replace a compiled module too (for its two bugs, see above).

    Returns:
        `COMPILED` when mmcv has its own operators and `force` is not set, else `STAND_IN`;
        `NO_KERNELS` when mmcv is not installed.
    """
    if kernels_in_use() == STAND_IN:
        return STAND_IN
    if importlib.util.find_spec("mmcv") is None:
        return NO_KERNELS
    if not force and _has_compiled():
        return COMPILED
    module = _StandIn(MODULE)
    module.__spec__ = importlib.machinery.ModuleSpec(MODULE, loader=None)
    sys.modules[MODULE] = module
    if "mmcv" in sys.modules:
        sys.modules["mmcv"]._ext = module  # type: ignore[attr-defined]
    logger.debug("mmcv operators: %s (torchvision %s)", STAND_IN, torchvision.__version__)
    return STAND_IN


def kernels_in_use() -> str:
    """Which kernels `mmcv.ops` uses in this process: `STAND_IN`, `COMPILED` or `NO_KERNELS`."""
    module = sys.modules.get(MODULE)
    if module is None:
        return COMPILED if _has_compiled() else NO_KERNELS
    return STAND_IN if getattr(module, _MARK, False) else COMPILED


def _has_compiled() -> bool:
    if MODULE in sys.modules:
        return not getattr(sys.modules[MODULE], _MARK, False)
    try:
        return importlib.util.find_spec(MODULE) is not None
    except (ModuleNotFoundError, ValueError):
        return False


class _StandIn(types.ModuleType):
    """The module: the operators, and for every other name one that raises when called."""

    def __init__(self, name: str) -> None:
        super().__init__(name, doc=__doc__)
        setattr(self, _MARK, True)
        for operator in _OPERATORS:
            setattr(self, operator.__name__, operator)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(
                f"mmcv's operator {name!r} is not in the torchvision stand-in (it has "
                f"{', '.join(sorted(f.__name__ for f in _OPERATORS))}). A config that needs it "
                "wants an mmcv with compiled operators: see mmcv's installation guide."
            )

        absent.__name__ = name
        return absent


# Boxes are [N, 4] as x1, y1, x2, y2. RoIs are [R, 5]: image index, then a box.


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices [K] of the boxes kept, best score first; equal scores keep their order.

    Args:
        boxes: [N, 4].
        scores: [N].
        iou_threshold: A box that overlaps a better one by more is dropped.
        offset: 1 counts the last pixel in (width = x2 - x1 + 1), 0 does not.
    """
    boxes, scores = boxes.float(), scores.float()
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)  # type: ignore[no-any-return]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., 2017): neighbours of a kept box lose score instead of being dropped.

    Args:
        boxes: [N, 4].
        scores: [N].
        dets: Output [N, 5]: kept boxes and their decayed scores, in the order they were kept.
        iou_threshold: From where the methods 0 and 1 act.
        sigma: Of method 2.
        min_score: Boxes that fall below are dropped.
        method: 0 hard, 1 linear (times 1 - IoU), 2 Gaussian (times exp(-IoU^2 / sigma)).
        offset: As in `nms`.

    Returns:
        Indices [K] of the kept boxes.
    """
    if method not in (0, 1, 2):
        raise ValueError(f"softnms got method {method}; use 0 (naive), 1 (linear), 2 (gaussian).")
    left = scores.float().clone()
    corners = boxes.float()
    alive = torch.ones_like(left, dtype=torch.bool)
    kept: list[int] = []
    for _ in range(len(left)):
        best = int(torch.where(alive, left, -torch.inf).argmax())
        if not alive[best]:
            break
        dets[len(kept), :4] = boxes[best]
        dets[len(kept), 4] = left[best]
        kept.append(best)
        alive[best] = False
        overlap = _iou_with(corners[best], corners, offset)  # [N]
        if method == 0:
            decay = (overlap < iou_threshold).to(left.dtype)
        elif method == 1:
            decay = torch.where(overlap >= iou_threshold, 1 - overlap, torch.ones_like(overlap))
        else:
            decay = torch.exp(-(overlap**2) / sigma)
        left = torch.where(alive, left * decay, left)
        alive &= left >= min_score
    return torch.tensor(kept, dtype=torch.long)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes [N, 5] (box, score): each kept box first, then those it suppresses."""
    boxes = dets[:, :4].float()
    order = dets[:, 4].argsort(descending=True, stable=True).tolist()
    groups: list[list[int]] = []
    while order:
        best, rest = order[0], order[1:]
        overlap = _iou_with(boxes[best], boxes[rest], 0) if rest else boxes.new_zeros(0)
        taken = [index for index, hit in zip(rest, overlap >= iou_threshold, strict=True) if hit]
        groups.append([best, *taken])
        order = [index for index in rest if index not in set(taken)]
    return groups


def _iou_with(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    """IoU [N] of one box [4] with boxes [N, 4]."""
    top_left = torch.maximum(box[:2], boxes[:, :2])
    bottom_right = torch.minimum(box[2:], boxes[:, 2:])
    inner = (bottom_right - top_left + offset).clamp(min=0).prod(dim=1)
    area = (box[2:] - box[:2] + offset).prod()
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(dim=1)
    return inner / (area + areas - inner)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (He et al., 2017) of `input` [B, C, H, W], averaged, into `output` [R, C, h, w]."""
    _need_average(pool_mode)
    dtype = compute_dtype(input)
    pooled = torch.ops.torchvision.roi_align(
        input.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` for its input, into `grad_input` [B, C, H, W]."""
    _need_average(pool_mode)
    dtype = compute_dtype(grad_output)
    # RoIAlign is linear in the map, so its gradient at any map is the gradient at zero: this
    # needs only torchvision's public operator.
    with torch.enable_grad():
        zero = torch.zeros(
            grad_input.shape, dtype=dtype, device=grad_input.device, requires_grad=True
        )
        pooled = torch.ops.torchvision.roi_align(
            zero,
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
        (gradient,) = torch.autograd.grad(pooled, zero, grad_output.to(dtype))
    grad_input.copy_(gradient)


def _need_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "RoIAlign with pool_mode='max' is not in the torchvision stand-in. "
            "Use pool_mode='avg' (mmdet's default)."
        )


def get_compiler_version() -> str:
    """For mmengine's report of the environment."""
    return f"not compiled ({STAND_IN})"


def get_compiling_cuda_version() -> str:
    """For mmengine's report of the environment."""
    return f"not compiled ({STAND_IN})"


_OPERATORS: tuple[Callable[..., Any], ...] = (
    nms,
    softnms,
    nms_match,
    roi_align_forward,
    roi_align_backward,
    get_compiler_version,
    get_compiling_cuda_version,
    *OPERATORS,
    *mmcv_text_operators.OPERATORS,
)
