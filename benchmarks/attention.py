"""Attention on a CPU: torch's fused kernel against two matrix products, in one process.

    python benchmarks/attention.py

Forward and backward, on the shapes of a ViT-B/16 (197 tokens, 50 of them visible, 1024 at 512 px)
and of a text tower. A ratio below 1 says that the products are faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from maskclip_bench.modeling.attention import attend

SHAPES = ((16, 12, 197), (16, 12, 50), (16, 8, 32), (2, 12, 1024))
"""Batch, heads, tokens."""


def seconds(kernel: Callable[[Tensor, Tensor, Tensor], Tensor], qkv: Tensor, grad: Tensor) -> float:
    """Of one forward and backward pass."""
    start = time.perf_counter()
    kernel(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).backward(grad)
    return time.perf_counter() - start


def main() -> None:
    """Print one row for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    print(f"bf16, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(
        "| batch x heads x tokens | fused, ms | products, ms | ratio |\n| --- | --- | --- | --- |"
    )
    for batch, heads, length in SHAPES:
        qkv = torch.randn(batch, length, 3, heads, 64, dtype=torch.bfloat16, requires_grad=True)
        grad = torch.randn(batch, heads, length, 64, dtype=torch.bfloat16)
        kernels = (scaled_dot_product_attention, attend)
        times: list[list[float]] = [[], []]
        for turn in range(options.repeats + 2):
            for kernel, found in zip(kernels, times, strict=True):
                elapsed = seconds(kernel, qkv, grad)
                if turn >= 2:
                    found.append(elapsed)
        fused_ms, plain_ms = (1e3 * statistics.median(found) for found in times)
        ratio = plain_ms / fused_ms
        print(f"| {batch} x {heads} x {length} | {fused_ms:.1f} | {plain_ms:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
