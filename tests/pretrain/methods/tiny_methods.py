"""Every method, small; and two processes that run them. Run by test_methods.py as a script too."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from maskclip_bench.data.batch import Batch
from maskclip_bench.data.shapes import COLOURS, GROUNDS, SHAPES, draw_shapes
from maskclip_bench.modeling import DEMO_VIT, ModelConfig, TextConfig, VisionConfig
from maskclip_bench.pretrain.methods import METHODS, build_method
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.training.parallel import DDPStrategy

VOCABULARY = 60
MODEL = ModelConfig(
    proj_dim=24,
    image_size=48,
    vision=VisionConfig(timm_model=DEMO_VIT),
    text=TextConfig(context_length=16, vocab_size=VOCABULARY, width=32, num_heads=2, depth=2),
)
QUANTIZER = {"num_codewords": 16, "codeword_hidden_dim": 24, "codeword_dim": 8}
HEAD = {"ssl_hidden_dim": 32, "ssl_output_dim": 16}


def fields(name: str, folder: Path) -> dict[str, Any]:
    """Fields of a method's Config that make it small."""
    return {
        "slip": HEAD,
        "simclr": HEAD,
        "maskclip": {**QUANTIZER, "text_decoder_depth": 1},
        "mae": {"decoder_depth": 2, "decoder_dim": 24, "decoder_num_heads": 2},
        "simmim": {"mask_patch_size": 16},
        "mvp": {
            **QUANTIZER,
            "teacher_model": f"local-dir:{folder}",
            "teacher_pretrained": None,
            "mask_kind": "random",
        },
    }.get(name, {})


def build(name: str, folder: Path, **changes: Any) -> Method:
    torch.manual_seed(0)
    return build_method(name, {**fields(name, folder), **changes}, MODEL).train()


def captions(count: int, length: int = 12) -> Tensor:
    """Captions of 3 to `length` tokens, the first as long as can be, the second half shorter."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.zeros(count, length, dtype=torch.int64)
    lengths = torch.randint(3, length + 1, (count,), generator=generator)
    lengths[0] = length
    lengths[count // 2 :].clamp_(max=length - 3)
    for row, n in zip(rows, lengths.tolist(), strict=True):
        row[1 : n - 1] = torch.randint(1, VOCABULARY - 2, (n - 2,), generator=generator)
        row[0], row[n - 1] = VOCABULARY - 2, VOCABULARY - 1
    return rows


def batch(count: int = 8, *, num_ssl_views: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(count, 3, 48, 48, generator=generator)
    views = tuple(
        images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(num_ssl_views)
    )
    return Batch(images, captions(count), views, torch.Generator().manual_seed(seed))


DRAWN_WORDS = ["a", "drawing", "of", "and", "on", "with", *COLOURS, *SHAPES, *GROUNDS]


@functools.cache
def drawn_pairs(count: int) -> tuple[Tensor, Tensor]:
    """Drawn shapes [count, 3, 48, 48], about normalized, and their captions [count, L]."""
    pixels, rows = [], []
    for index in range(count):
        image, texts = draw_shapes(index, size=48)
        pixels.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        words = [1 + DRAWN_WORDS.index(word) for word in texts[0].split()]
        rows.append(torch.tensor([VOCABULARY - 2, *words, VOCABULARY - 1]))
    images = torch.stack(pixels).float() / 64 - 2
    return images, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def drawn_batch(count: int, *, seed: int = 0) -> Batch:
    """Drawn pairs; views are a darker image, and a brighter one mirrored."""
    images, tokens = drawn_pairs(count)
    views = (0.8 * images, 1.2 * images.flip(3))
    return Batch(images, tokens, views, torch.Generator().manual_seed(seed))


def part(whole: Batch, start: int, stop: int, *, trimmed: bool = False) -> Batch:
    """Some rows of a batch; trimmed as the loader does, to the longest of their own captions."""
    rows = slice(start, stop)
    tokens = whole.tokens[rows]
    if trimmed:
        tokens = tokens[:, : int((tokens != 0).sum(1).max())]
    return Batch(
        whole.images[rows],
        tokens,
        tuple(view[rows] for view in whole.ssl_views),
        torch.Generator().manual_seed(0),
    )


def step(
    method: Method, a_batch: Batch, *, forward: Callable[[Batch], dict[str, Tensor]] | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients."""
    terms = (forward or method)(a_batch)
    terms["loss"].backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    return {name: float(term.detach()) for name, term in terms.items()}, gradients


def repeating_draws(patch: pytest.MonkeyPatch, period: int) -> None:
    """Let row i of every draw equal row i % period, so that parts of a batch draw as the whole.

    What is drawn for a token does not depend on how long the longest caption is, either.
    """
    plain = torch.rand
    longest = 64

    def rand(*size: Any, generator: torch.Generator | None = None) -> Tensor:
        shape = tuple(size[0]) if isinstance(size[0], tuple | torch.Size) else size
        axis = 1 if len(shape) == 3 else 0
        fixed = torch.Generator().manual_seed(len(shape))
        drawn = plain(*shape[:axis], period, *shape[axis + 1 : -1], longest, generator=fixed)
        drawn = drawn[..., : shape[-1]]
        return drawn.index_select(axis, torch.arange(shape[axis]) % period)

    patch.setattr(torch, "rand", rand)


def run_rank(rank: int, store: str, folder: Path, results: Path) -> None:
    """One of two processes: every method, in the trainer's replicas, on this rank's half."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    lengths = torch.zeros(2, dtype=torch.int64)
    whole = batch(8)
    half = part(whole, 4 * rank, 4 * rank + 4, trimmed=True)
    lengths[rank] = half.tokens.shape[1]
    dist.all_reduce(lengths)
    for name in METHODS:
        with pytest.MonkeyPatch.context() as patch:
            repeating_draws(patch, 4)
            method = build(name, folder)
            replicas = DDPStrategy(method, device=torch.device("cpu"), accumulates=False)
            losses, gradients = step(method, half, forward=replicas.forward)
            logged = method.after_step(step=1, total_steps=10)
        means = torch.tensor(list(losses.values()))
        dist.all_reduce(means)
        buffers = {n: b.clone() for n, b in method.named_buffers()}
        found[name] = {
            "losses": dict(zip(losses, (means / 2).tolist(), strict=True)),
            "gradients": gradients,
            "buffers": buffers,
            "logged": logged,
            "lengths": lengths.tolist(),
        }
    if rank == 0:
        torch.save(found, results)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
