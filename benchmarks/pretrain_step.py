"""Time of a training step of each method, against a plain CLIP step.

    python benchmarks/pretrain_step.py --batch-size 16 --repeats 5
    python benchmarks/pretrain_step.py --accumulation-steps 2   # beside its own step without

The plain step is CLIP as SLIP's code (facebookresearch/SLIP) writes it: captions padded to 77
tokens, attention that makes its whole matrix (timm's and `nn.MultiheadAttention`'s), one pass for
images and one for captions, the whole matrix of logits. Model size, batch, device, precision and
optimizer (fused AdamW, for the plain step too) are the same; plain and method take turns, step by
step, in one process, and the ratio is the median over turns.

Arithmetic is counted by torch (products, convolutions, attention; forward and backward), and its
time is that of the same number of operations in the largest matrix product the machine does well.
Captions have the lengths of YFCC's: a mean of 12 words, modelled as log-normal.

With `--accumulation-steps` each method's step in micro-batches takes turns with its step without.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from maskclip_bench.data.batch import Batch, Draw, with_tensors
from maskclip_bench.modeling import ModelConfig, VisionConfig, build_model
from maskclip_bench.pretrain.accumulation import accumulated_backward
from maskclip_bench.pretrain.assembly import compile_whole
from maskclip_bench.pretrain.methods import METHODS, build_method

ARCHITECTURES = {
    "vit-s-16": "vit_small_patch16_224",
    "vit-b-16": "vit_base_patch16_224",
    "vit-l-16": "vit_large_patch16_224",
}
DEFAULT_METHODS = ("clip", "slip", "clip_mae", "maskclip")
PLAIN = "plain"
MEAN_WORDS = 12
TOKENS_OF_WORD = 1.25
SOT, EOT = 49406, 49407
NUM_BATCHES = 8
"""Batches that are made ready, and come again."""

Step = Callable[[int], None]


class PlainCLIP(nn.Module):
    """CLIP as SLIP's code has it; same towers and sizes as the methods' student."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = build_model(config)
        for block in self.model.visual.trunk.blocks:
            block.__class__ = Block  # timm's own forward pass
            block.attn.fused_attn = False

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Images [B, 3, H, W], captions [B, 77] -> loss."""
        model, text = self.model, self.model.text
        image = F.normalize(model.visual.head(model.visual.trunk(images)), dim=-1)
        hidden = (text.token_embedding(tokens) + text.positional_embedding).transpose(0, 1)
        for block in text.transformer.resblocks:
            hidden = self.block(block, hidden, text.attn_mask)
        hidden = text.ln_final(hidden.transpose(0, 1))
        ends = hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(-1)]
        caption = F.normalize(ends @ text.text_projection, dim=-1)
        logits = model.logit_scale.exp() * image @ caption.T
        targets = torch.arange(len(tokens), device=tokens.device)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2

    @staticmethod
    def block(block: Any, hidden: Tensor, mask: Tensor) -> Tensor:
        """One text block on [L, B, W], with the attention matrix made."""
        attention: nn.MultiheadAttention = block.attn
        attention.batch_first = False
        normed = block.ln_1(hidden)
        mixed, _ = attention(
            normed,
            normed,
            normed,
            need_weights=True,  # without, today's torch fuses it
            average_attn_weights=False,
            attn_mask=mask.to(normed.dtype),
        )
        hidden = hidden + mixed
        return hidden + block.mlp(block.ln_2(hidden))


def draw_captions(count: int, generator: torch.Generator) -> Tensor:
    """Captions [count, 77] with YFCC-like lengths."""
    sigma = 0.8
    noise = torch.randn(count, generator=generator)
    words = torch.exp(math.log(MEAN_WORDS) - sigma**2 / 2 + sigma * noise)
    lengths = (words * TOKENS_OF_WORD).round().long().clamp(1, 75) + 2
    tokens = torch.zeros(count, 77, dtype=torch.int64)
    for row, length in zip(tokens, lengths.tolist(), strict=True):
        row[1 : length - 1] = torch.randint(1, SOT, (length - 2,), generator=generator)
        row[0], row[length - 1] = SOT, EOT
    return tokens


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """The engine's optimizer."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5, fused=True)


def make_step(
    name: str,
    config: ModelConfig,
    options: argparse.Namespace,
    *,
    parts: int = 1,
    compiled: bool = False,
) -> Step:
    """A function of the step's number that trains one step, of batches that are on the device.

    As in the trainer, what a step draws is drawn and copied beforehand, and not a part of it.

    Args:
        name: A method, or `PLAIN`.
        config: Of the model.
        options: Device, batch size, precision.
        parts: Micro-batches.
        compiled: Whether the method is compiled.
    """
    device = torch.device(options.device)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    size = (options.batch_size, 3, config.image_size, config.image_size)
    images = torch.randn(size, generator=generator).to(device)
    captions = [draw_captions(options.batch_size, generator) for _ in range(NUM_BATCHES)]

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")

    if name == PLAIN:
        plain = PlainCLIP(config).to(device).train()
        plain_optimizer = optimizer_of(plain)
        padded = [tokens.to(device) for tokens in captions]

        def plain_step(number: int) -> None:
            with autocast():
                loss = plain(images, padded[number % NUM_BATCHES])
            loss.backward()
            plain_optimizer.step()
            plain_optimizer.zero_grad()

        return plain_step

    method = build_method(name, {}, config).to(device).train()
    if compiled:
        compile_whole(method)
    optimizer = optimizer_of(method)
    count = options.batch_size // parts
    views = tuple(images.flip(3) for _ in range(method.num_ssl_views))

    def batch_of(tokens: Tensor, rows: slice, draws: torch.Generator) -> Batch:
        tokens = tokens[:, : int((tokens.argmax(-1) + 1).max())]  # the loader's, of the whole batch
        drawn = method.draw(Draw(count, tokens[rows], draws))
        return Batch(
            images=images[rows],
            tokens=tokens[rows].to(device),
            ssl_views=tuple(view[rows] for view in views),
            generator=draws,
            tokens_on_cpu=tokens[rows],
            drawn=with_tensors(drawn, lambda tensor: tensor.to(device)),
        )

    rows = [slice(part * count, (part + 1) * count) for part in range(parts)]
    prepared = [
        [batch_of(tokens, some, torch.Generator().manual_seed(number)) for some in rows]
        for number, tokens in enumerate(captions)
    ]

    def step(number: int) -> None:
        batches = prepared[number % NUM_BATCHES]
        if parts == 1:
            with autocast():
                loss = method(batches[0])["loss"]
            loss.backward()
        else:
            accumulated_backward(method, batches, reseed=lambda part: None, autocast=autocast)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step=number + 1, total_steps=10_000)

    return step


CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def timed(step: Step, number: int, options: argparse.Namespace, *, count: int = 1) -> float:
    """Seconds of a step, of so many that follow each other without waiting for the device."""
    clock = CLOCKS[options.clock]
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    start = clock()
    for further in range(count):
        step(number + further)
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    return (clock() - start) / count


def count_operations(step: Step) -> int:
    """Floating-point operations of one step, forward and backward."""
    aten = torch.ops.aten

    def attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def attention_backward(
        grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
    ) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        step(0)
    return int(counter.get_total_flops())


def product_peak(options: argparse.Namespace) -> float:
    """Operations a second of a large matrix product, the best of ten."""
    size = 8192 if options.device.startswith("cuda") else 2048
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    left = torch.randn(size, size, device=options.device).to(dtype)
    right = torch.randn(size, size, device=options.device).to(dtype)
    seconds = min(timed(lambda _: torch.mm(left, right), 0, options) for _ in range(10))
    return 2 * size**3 / seconds


def peak_memory(name: str, options: argparse.Namespace) -> float:
    """GiB at the peak of two steps: of this device, or of a process of its own on a CPU."""
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        step = make_step(name, model_config(options.arch), options)
        for number in range(2):
            step(number)
        return torch.cuda.max_memory_allocated() / 2**30
    command = [sys.executable, __file__, "--memory-of", name, "--arch", options.arch]
    command += ["--batch-size", str(options.batch_size), "--precision", options.precision]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout)


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Time, ratio, memory and arithmetic of one method beside the plain step."""
    config = model_config(options.arch)
    steps = {PLAIN: make_step(PLAIN, config, options), name: make_step(name, config, options)}
    operations = {key: count_operations(step) for key, step in steps.items()}
    peak = product_peak(options)
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for number in range(options.warmup + options.repeats):
        order = list(steps) if number % 2 else list(reversed(steps))
        for key in order:
            elapsed = timed(steps[key], number, options)
            if number >= options.warmup:
                seconds[key].append(elapsed)
    ratios = [a / b for a, b in zip(seconds[name], seconds[PLAIN], strict=True)]
    median = statistics.median(seconds[name])
    result = {
        "images_per_second": options.batch_size / median,
        "plain_images_per_second": options.batch_size / statistics.median(seconds[PLAIN]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "operations": operations[name],
        "arithmetic_ratio": operations[name] / operations[PLAIN],
        "peak_operations_per_second": peak,
        "arithmetic_share": operations[name] / peak / median,
        "plain_arithmetic_share": operations[PLAIN] / peak / statistics.median(seconds[PLAIN]),
    }
    steps.clear()
    gc.collect()
    return result


def measure_micro_batches(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Time of a step in micro-batches over one without, by turns."""
    config, parts = model_config(options.arch), options.accumulation_steps
    steps = {number: make_step(name, config, options, parts=number) for number in (1, parts)}
    operations = {key: count_operations(step) for key, step in steps.items()}
    seconds: dict[int, list[float]] = {key: [] for key in steps}
    for number in range(options.warmup + options.repeats):
        for key in list(steps) if number % 2 else list(reversed(steps)):
            elapsed = timed(steps[key], number, options)
            if number >= options.warmup:
                seconds[key].append(elapsed)
    ratios = [a / b for a, b in zip(seconds[parts], seconds[1], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "arithmetic_ratio": operations[parts] / operations[1],
    }


def print_micro_batches(options: argparse.Namespace) -> None:
    """One row of Markdown for each method."""
    print("| method | ratio to a step without micro-batches (range) | ratio of arithmetic |")
    print("| --- | --- | --- |")
    for name in options.methods:
        row = measure_micro_batches(name, options)
        print(
            f"| {name} | {row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) "
            f"| {row['arithmetic_ratio']:.2f} |",
            flush=True,
        )


def model_config(arch: str) -> ModelConfig:
    """SLIP's model with the vision tower of that name."""
    return ModelConfig(vision=VisionConfig(timm_model=ARCHITECTURES[arch]), quick_gelu=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=ARCHITECTURES, default="vit-b-16")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=DEFAULT_METHODS)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="process: CPU time; with one thread it is fair on a machine that others use too",
    )
    parser.add_argument(
        "--accumulation-steps", type=int, default=1, help="measure micro-batches instead"
    )
    parser.add_argument("--skip-memory", action="store_true", help="measure no peak memory")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print one row of Markdown for each method."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory_of:
        options.device = "cpu"
        step = make_step(options.memory_of, model_config(options.arch), options)
        for number in range(2):
            step(number)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    print(
        f"{options.arch}, batch {options.batch_size}, {options.precision}, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {options.repeats} turns, "
        f"{options.clock} time\n"
    )
    if options.accumulation_steps > 1:
        print_micro_batches(options)
        return
    print(
        "| method | images/s | plain CLIP, images/s | ratio (range) | ratio of arithmetic "
        "| share of product peak (plain) | peak memory, GiB |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    found: dict[str, dict[str, float]] = {}
    for name in options.methods:
        row = found[name] = measure(name, options)
        memory = "-"
        if not options.skip_memory:
            row["peak_memory_gib"] = peak_memory(name, options)
            memory = f"{row['peak_memory_gib']:.1f}"
        print(
            f"| {name} | {row['images_per_second']:.2f} | {row['plain_images_per_second']:.2f} "
            f"| {row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) "
            f"| {row['arithmetic_ratio']:.2f} "
            f"| {row['arithmetic_share']:.0%} ({row['plain_arithmetic_share']:.0%}) | {memory} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({**vars(options), "rows": found}, default=str, indent=2))


if __name__ == "__main__":
    main()
