"""Labels of patches and upsampling of scores on large masks, against plain versions.

    python benchmarks/patch_masks.py                     # 512 x 683, 150 classes, a grid of 28 x 28
    python benchmarks/patch_masks.py --height 1504 --width 2000

The plain versions are what one writes first: a one-hot mask pooled to the grid, and score maps of
all classes at the mask's size. Both give the same result, which is checked. They take turns in one
process; times are CPU time (medians), memory is the growth of the peak during one call (Linux).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from maskclip_bench.data.masks import class_shares
from maskclip_bench.tasks.protocols.patch_segmentation import segment


def plain_labels(mask: np.ndarray, num_classes: int, grid: int) -> np.ndarray:
    """One-hot, then adaptive average pooling."""
    labels = torch.from_numpy(mask).long().clamp(max=num_classes)
    hot = F.one_hot(labels, num_classes + 1)[..., :num_classes].permute(2, 0, 1).float()
    return F.adaptive_avg_pool2d(hot, grid).flatten(1).T.numpy()


def plain_segment(scores: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """All score maps at the mask's size."""
    side = round(len(scores) ** 0.5)
    maps = scores.T.reshape(1, -1, side, side)
    upsampled = F.interpolate(maps, size=shape, mode="bilinear", align_corners=False)
    return upsampled[0].argmax(0).numpy()


def peak_kib() -> int:
    """The process' peak resident size since it was last reset."""
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def growth(work: Callable[[], Any]) -> tuple[float, Any]:
    """MiB by which a call raises the process' peak, and what the call returns."""
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    result = work()
    return (peak_kib() - before) / 1024, result


def check(name: str, plain: np.ndarray, ours: np.ndarray) -> None:
    """Both are the same, but for pixels where two classes are equal to the last bit."""
    if name == "labels of patches":
        np.testing.assert_allclose(plain, ours, atol=1e-6)
        return
    differing = int((plain != ours).sum())
    assert differing <= 1e-5 * plain.size, f"{differing} of {plain.size} pixels differ"
    print(f"{name}: {differing} of {plain.size} pixels differ (two classes equal to the last bit)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=683)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--grid", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, given.classes, (24, 32), dtype=np.uint8)
    rows = np.linspace(0, 23, given.height).astype(int)
    columns = np.linspace(0, 31, given.width).astype(int)
    mask = coarse[rows][:, columns]
    scores = torch.randn(given.grid**2, given.classes, generator=torch.Generator().manual_seed(0))
    shape = (given.height, given.width)
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "labels of patches": (
            lambda: plain_labels(mask, given.classes, given.grid),
            lambda: class_shares(mask, given.classes, given.grid),
        ),
        "class of each pixel": (
            lambda: plain_segment(scores, shape),
            lambda: segment(scores, shape),
        ),
    }
    print(f"{given.height} x {given.width}, {given.classes} classes, {given.grid} x {given.grid}")
    for name, (plain, ours) in pairs.items():
        memory: dict[str, float] = {}
        memory["ours"], found = growth(ours)  # the smaller one first
        memory["plain"], expected = growth(plain)
        check(name, expected, found)
        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(given.repeats):
            for kind, work in (("plain", plain), ("ours", ours)):
                started = time.process_time()
                work()
                seconds[kind].append(time.process_time() - started)
        before, after = (statistics.median(seconds[kind]) for kind in ("plain", "ours"))
        print(
            f"{name}: plain {1000 * before:.1f} ms, {memory['plain']:.0f} MiB; "
            f"ours {1000 * after:.1f} ms, {memory['ours']:.0f} MiB; time ratio {after / before:.3f}"
        )


if __name__ == "__main__":
    main()
