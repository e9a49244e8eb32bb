from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import types
from typing import Any

import pytest
import torch

from maskclip_bench.backbones.openmmlab import mmcv_kernels as kernels
from maskclip_bench.data_files import shipped_root


@pytest.fixture
def clean_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, kernels.MODULE, raising=False)


def naive_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, offset: int) -> list:
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    kept: list[int] = []
    for i in order:
        x1, y1, x2, y2 = (float(v) for v in boxes[i])
        area = (x2 - x1 + offset) * (y2 - y1 + offset)
        for k in kept:
            a1, b1, a2, b2 = (float(v) for v in boxes[k])
            inner = max(0.0, min(x2, a2) - max(x1, a1) + offset) * max(
                0.0, min(y2, b2) - max(y1, b1) + offset
            )
            if inner / (area + (a2 - a1 + offset) * (b2 - b1 + offset) - inner) > threshold:
                break
        else:
            kept.append(i)
    return kept


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corners, corners + 1 + torch.rand(count, 2, generator=generator) * 20], 1)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nms__as_the_naive_one(offset: int, dtype: torch.dtype) -> None:
    for seed in range(5):
        boxes = random_boxes(40, seed).to(dtype)
        scores = torch.rand(40, generator=torch.Generator().manual_seed(seed)).to(dtype)
        found = kernels.nms(boxes, scores, 0.4, offset).tolist()
        assert found == naive_nms(boxes.float(), scores.float(), 0.4, offset)


def test_nms__equal_scores_keep_their_order() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    assert kernels.nms(boxes, torch.full((3,), 0.5), 0.5, 0).tolist() == [0, 2]


def test_nms__nothing_in_nothing_out() -> None:
    assert kernels.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, 0).tolist() == []


def naive_roi_align(
    maps: torch.Tensor, rois: torch.Tensor, size: int, scale: float, ratio: int, aligned: bool
) -> torch.Tensor:
    """Average of bilinear samples per bin, points outside by -1 or more count as zero."""
    height, width = maps.shape[-2:]
    shift = 0.5 if aligned else 0.0

    def sample(image: torch.Tensor, y: float, x: float) -> torch.Tensor:
        if y < -1 or y > height or x < -1 or x > width:
            return image.new_zeros(image.shape[0])
        y, x = max(y, 0.0), max(x, 0.0)
        y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        fy = 0.0 if y0 == height - 1 else y - y0
        fx = 0.0 if x0 == width - 1 else x - x0
        top = image[:, y0, x0] * (1 - fx) + image[:, y0, x1] * fx
        bottom = image[:, y1, x0] * (1 - fx) + image[:, y1, x1] * fx
        return top * (1 - fy) + bottom * fy

    output = []
    for roi in rois.tolist():
        image = maps[int(roi[0])]
        x1, y1, x2, y2 = (value * scale - shift for value in roi[1:])
        bin_width, bin_height = (x2 - x1) / size, (y2 - y1) / size
        for row in range(size):
            for column in range(size):
                samples = [
                    sample(
                        image,
                        y1 + (row + (i + 0.5) / ratio) * bin_height,
                        x1 + (column + (j + 0.5) / ratio) * bin_width,
                    )
                    for i in range(ratio)
                    for j in range(ratio)
                ]
                output.append(torch.stack(samples).mean(0))
    return torch.stack(output).view(len(rois), size, size, -1).permute(0, 3, 1, 2)


def align(maps: torch.Tensor, rois: torch.Tensor, *, aligned: bool = True) -> torch.Tensor:
    output = maps.new_zeros(len(rois), maps.shape[1], 3, 3)
    empty = maps.new_zeros(0)
    kernels.roi_align_forward(
        maps, rois, output, empty, empty,
        aligned_height=3, aligned_width=3, spatial_scale=0.5, sampling_ratio=2, pool_mode=1,
        aligned=aligned,
    )  # fmt: skip
    return output


def maps_and_rois(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    maps = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    rois = torch.tensor(
        [[0, 0, 0, 13, 13], [1, 2.5, 3, 9, 15], [1, -4, -2, 6, 8], [0, 5, 5, 40, 40]]
    )
    return maps, rois.to(dtype)


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align__as_the_naive_one(aligned: bool) -> None:
    maps, rois = maps_and_rois()
    expected = naive_roi_align(maps, rois, 3, 0.5, 2, aligned)
    torch.testing.assert_close(align(maps, rois, aligned=aligned), expected, atol=1e-5, rtol=1e-5)


def test_roi_align__channels_last_is_the_same() -> None:
    maps, rois = maps_and_rois()
    last = maps.contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    torch.testing.assert_close(align(last, rois), align(maps, rois), atol=0, rtol=0)


def test_roi_align__bfloat16_is_computed_in_float32() -> None:
    maps, rois = maps_and_rois(torch.bfloat16)
    output = align(maps, rois)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, align(maps.float(), rois.float()).bfloat16())


def test_roi_align__gradient() -> None:
    """Through mmcv's own autograd function, which calls both directions."""
    pytest.importorskip("mmcv")
    from mmcv.ops import roi_align

    maps, rois = maps_and_rois(torch.float64)
    maps = maps[:, :2].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda value: roi_align(value, rois, (2, 2), 0.5, 2, "avg", True), (maps,)
    )


def align_gradient(grad_output: torch.Tensor, rois: torch.Tensor, like: torch.Tensor) -> Any:
    gradient = torch.full_like(like, torch.nan)
    empty = like.new_zeros(0)
    kernels.roi_align_backward(
        grad_output, rois, empty, empty, gradient,
        aligned_height=3, aligned_width=3, spatial_scale=0.5, sampling_ratio=2, pool_mode=1,
        aligned=True,
    )  # fmt: skip
    return gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_roi_align__gradient_of_other_types_and_layouts(
    dtype: torch.dtype, channels_last: bool
) -> None:
    """As autograd's through the naive one, in float32, rounded once at the end."""
    maps, rois = maps_and_rois()
    weights = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    rois = rois.to(dtype)
    maps.requires_grad_()
    (naive_roi_align(maps, rois.float(), 3, 0.5, 2, True) * weights.float()).sum().backward()
    like = maps.detach().to(dtype)
    if channels_last:
        like = like.contiguous(memory_format=torch.channels_last)
        weights = weights.contiguous(memory_format=torch.channels_last)
    found = align_gradient(weights, rois, like)
    assert found.dtype == dtype
    assert maps.grad is not None
    torch.testing.assert_close(found, maps.grad.to(dtype), atol=1e-5, rtol=2e-2)


def test_roi_align__no_rois() -> None:
    """An image without proposals: nothing comes out, and its gradient is zero."""
    maps, rois = maps_and_rois()
    assert align(maps, rois[:0]).shape == (0, 4, 3, 3)
    assert (align_gradient(maps.new_zeros(0, 4, 3, 3), rois[:0], maps) == 0).all()


def test_roi_align__max_pooling_is_refused() -> None:
    maps, rois = maps_and_rois()
    empty = maps.new_zeros(0)
    with pytest.raises(NotImplementedError, match="pool_mode='max' is not in the torchvision"):
        kernels.roi_align_forward(maps, rois, empty, empty, empty, 3, 3, 1.0, 2, 0, True)


def test_softnms__gaussian_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    dets = torch.zeros(3, 5)
    kept = kernels.softnms(boxes, scores, dets, 0.3, 0.5, 1e-3, 2, 0)
    assert kept.tolist() == [0, 2, 1]
    decayed = 0.8 * torch.exp(torch.tensor(-(0.5**2) / 0.5))
    torch.testing.assert_close(dets[:, 4], torch.stack([scores[0], scores[2], decayed]))
    assert torch.equal(dets[:, :4], boxes[kept])


def test_softnms__linear_and_hard() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    scores, dets = torch.tensor([0.9, 0.8]), torch.zeros(2, 5)
    assert kernels.softnms(boxes, scores, dets, 0.3, 0.5, 1e-3, 1, 0).tolist() == [0, 1]
    assert dets[1, 4] == pytest.approx(0.4)
    assert kernels.softnms(boxes, scores, dets, 0.3, 0.5, 1e-3, 0, 0).tolist() == [0]


def test_softnms__unknown_method() -> None:
    with pytest.raises(ValueError, match=r"softnms got method 7; use 0 \(naive\)"):
        kernels.softnms(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, 5), 0.3, 0.5, 0, 7, 0)


def test_nms_match__groups() -> None:
    dets = torch.tensor(
        [[0.0, 0, 10, 10, 0.5], [20, 20, 30, 30, 0.9], [0, 0, 10, 9, 0.8], [20, 20, 30, 29, 0.1]]
    )
    assert kernels.nms_match(dets, 0.5) == [[1, 3], [2, 0]]


def test_install__absent_operators_say_their_name(clean_module: None) -> None:
    pytest.importorskip("mmcv")
    assert kernels.install() == kernels.STAND_IN
    assert kernels.kernels_in_use() == kernels.STAND_IN
    operator = sys.modules[kernels.MODULE].carafe_forward
    with pytest.raises(
        NotImplementedError,
        match=r"'carafe_forward' is not in the torchvision stand-in \(it has .*nms.*\)\. "
        r"A config that needs it wants an mmcv with compiled operators",
    ):
        operator()
    assert not hasattr(sys.modules[kernels.MODULE], "__wrapped__")
    assert kernels.install() == kernels.STAND_IN  # safe to call twice


def test_install__steps_aside_for_a_compiled_module(
    clean_module: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = types.ModuleType(kernels.MODULE)
    compiled.__spec__ = importlib.machinery.ModuleSpec(kernels.MODULE, loader=None)
    monkeypatch.setitem(sys.modules, kernels.MODULE, compiled)
    assert kernels.install() == kernels.COMPILED
    assert sys.modules[kernels.MODULE] is compiled
    assert kernels.install(force=True) == kernels.STAND_IN


def test_install__finds_a_compiled_module_that_is_not_imported(
    clean_module: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    compiled = importlib.machinery.ModuleSpec(kernels.MODULE, loader=None)
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: compiled if name == kernels.MODULE else find_spec(name),
    )
    assert kernels.kernels_in_use() == kernels.COMPILED
    assert kernels.install() == kernels.COMPILED
    assert kernels.MODULE not in sys.modules


@pytest.mark.parametrize("error", [ModuleNotFoundError, ValueError])
def test_install__without_mmcv(
    error: type[Exception], clean_module: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> None:
        if name == kernels.MODULE:
            raise error(name)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    assert kernels.kernels_in_use() == kernels.NO_KERNELS
    assert kernels.install() == kernels.NO_KERNELS


WITHOUT_MMDET = """
import sys
sys.modules["mmdet"] = None
from mmengine.config import Config
from mmengine.registry import MODELS

for _ in range(2):
    Config.fromfile(sys.argv[1])
assert MODELS.get("MaskCLIPViT") is not None
from maskclip_bench.backbones.openmmlab import mmcv_kernels
print(mmcv_kernels.kernels_in_use())
"""


def test_hook__imported_twice_and_without_mmdet() -> None:
    """Two configs in one process name it, and a segmentation does not need mmdet."""
    pytest.importorskip("mmcv")
    root = shipped_root()
    config = root / "configs/mmseg/demo/vit-demo_frozen-upernet_1xb4-500_demo-scenes-144x144.py"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_MMDET, str(config)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split("\n")[-2] in (kernels.STAND_IN, kernels.COMPILED)
