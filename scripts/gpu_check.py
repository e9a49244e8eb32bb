"""Everything that only a GPU can show, in one command of at most a quarter of an hour on one H100.

    python scripts/gpu_check.py --output gpu_check         # gpu_check/gpu_check.{json,md}
    python scripts/gpu_check.py --parts correctness speed  # some parts
    python scripts/gpu_check.py --device cpu --tiny        # a rehearsal without a GPU, minutes

Each part runs in a process of its own with a time limit of its own, and writes what it has after
each number, so that one failure or one slow part costs nothing else.

The parts and their time limits:

* correctness, 80 s: loss and gradients of every method beside the CPU in fp32, 20 steps
  in bf16, synchronizations of a step; nccl's reduce_scatter and FSDP2 in a group of one process;
* compiled, 180 s: losses of four compiled steps in fp32 beside those of plain ones, captions of
  another length in each;
* speed, 390 s: ViT-B/16, batches that are on the device already, 128, 256 and 512 images, bf16,
  compiled or not, four steps in a row as the trainer does them: images/s, the host's part, share
  of the measured matrix product, peak memory, ratio to a plain CLIP step as SLIP's code has it;
  MaskCLIP's kernels by their time;
* loader, 110 s: images/s that the loader decodes on one core, and a ViT-B/16 CLIP run that is fed
  by it on this machine's cores beside one with batches that are on the device already;
* features, 45 s: feature extraction in fp32, bf16, and compiled in bf16;
* dense, 65 s: an iteration of UperNet at 512 px and of Mask R-CNN at 1024 px on ViT-B/16, each in
  fp32 and in bf16 as their configs train, and the adapter's overhead, where OpenMMLab is installed;
* many_passes, what is left, at most 240 s: the recipes of the study `demo_long` with their pairs
  held on the device (`data.held`): batches beside the loader's, where the host waits for them,
  pairs/s of CLIP and MaskCLIP beside the goal of 600,000 pairs in a minute, CLIP with the loader,
  several runs of CLIP at once, and CLIP compiled. Each run stops by itself when its share of the
  time is over.

`--seconds-in-all 480` stops sooner; the parts named first are done first.

`--cut-steps N` rehearses the real path of many_passes anywhere, with runs of N steps.

It needs no network, and of this package's dependencies only torch, torchvision, timm, pandas,
pyarrow, typer, rich, filelock, safetensors, PyYAML, scipy, scikit-learn, threadpoolctl, matplotlib,
huggingface_hub, and as wheels on a machine without a package index: open_clip_torch, ftfy, wcwidth,
regex, pydantic, pydantic_core, annotated_types, typing_inspection, braceexpand. Run it from a
checkout (`PYTHONPATH=.`), nothing has to be installed.

The dense part also needs the wheels onedl_mmengine, onedl_mmcv, onedl_mmsegmentation,
onedl_mmdetection, imaug, addict, termcolor, opencv_python_headless, pycocotools, shapely,
scikit_image and imageio, installed with `pip install --no-index --no-deps`: the models are built
with nothing else of what those name as their dependencies (but six and tqdm, which pandas and
huggingface_hub bring). Where one is missing the part says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PARTS: dict[str, int] = {
    "correctness": 80,
    "compiled": 180,
    "speed": 390,
    "loader": 110,
    "features": 45,
    "dense": 65,
    "many_passes": 240,
}
"""Part -> its time limit in seconds."""
WHOLE_SECONDS = 900
SHORTEST = 30
"""Seconds below which a part is not begun."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
DENSE_PACKAGES = (
    *("mmengine", "mmcv", "mmseg", "mmdet"),
    *("imgaug", "addict", "termcolor", "cv2", "pycocotools", "shapely"),
)
MANY_PASSES = (
    ("clip, held", "clip", {}, 1, 20),
    ("maskclip, held", "maskclip", {}, 1, 25),
    ("clip, by the loader", "clip", {"held": "none"}, 1, 20),
    ("clip, held, at once", "clip", {}, 8, 45),
    ("clip, held, compiled", "clip", {"compiled": True}, 1, 110),
)
"""(what, row, fields of `Passes`, runs at once, its share of the time) of many_passes."""
RESERVED = 10
"""Seconds at the end of many_passes for what runs write when they stop."""
GOAL_PAIRS = 600_000
"""Pairs of a CLIP of 0.8 million weights in a minute: the goal on one H100."""
METHODS_TIMED = ("clip", "clip_mae", "maskclip", "slip")
METHODS_COMPILED = ("clip", "maskclip")
BF16_STEPS = 20


# --- correctness ---------------------------------------------------------------------------------


def small_fields(name: str, folder: Path) -> dict[str, Any]:
    """Fields that make a method small."""
    quantizer = {"num_codewords": 64, "codeword_hidden_dim": 32, "codeword_dim": 16}
    heads = {"ssl_hidden_dim": 64, "ssl_output_dim": 32}
    return {
        "slip": heads,
        "simclr": heads,
        "maskclip": quantizer,
        "simmim": {"mask_patch_size": 16},
        "mvp": {
            **quantizer,
            "teacher_model": f"local-dir:{folder}",
            "teacher_pretrained": None,
            "mask_kind": "random",
        },
    }.get(name, {})


def check_method(name: str, device: Any, folder: Path) -> dict[str, Any]:
    """Loss and gradients beside the CPU's in fp32; bf16 steps; synchronizations of a step."""
    import torch

    from maskclip_bench.pretrain.methods import build_method
    from maskclip_bench.testing import tiny_batch, tiny_model

    found: dict[str, Any] = {}
    results = []
    for place in (torch.device("cpu"), device):
        torch.manual_seed(0)
        method = build_method(name, small_fields(name, folder), tiny_model()).to(place).train()
        batch = to_device(tiny_batch(num_ssl_views=method.num_ssl_views), place)
        loss = method(batch)["loss"]
        loss.backward()
        gradients = [p.grad.double().cpu() for p in method.parameters() if p.grad is not None]
        results.append((float(loss.detach()), gradients))
    (cpu_loss, cpu_gradients), (loss, gradients) = results
    scale = max(float(g.abs().max()) for g in cpu_gradients)
    found["loss_difference"] = abs(loss - cpu_loss)
    found["gradient_difference"] = (
        max(float((a - b).abs().max()) for a, b in zip(gradients, cpu_gradients, strict=True))
        / scale
    )
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for step in range(1, BF16_STEPS + 1):
        batch = to_device(tiny_batch(num_ssl_views=method.num_ssl_views, seed=step), device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = method(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step=step, total_steps=BF16_STEPS)
        losses.append(float(loss.detach()))
    found["bf16_first_loss"], found["bf16_last_loss"] = losses[0], losses[-1]
    found |= check_step(name, device, folder)
    return found


def check_step(name: str, device: Any, folder: Path) -> dict[str, Any]:
    """Whole steps as the trainer does them: the last loss, and where the host waits in one."""
    stepper, pairs = make_stepper(name, device, folder, precision="bf16")
    steps = [stepper.preparation([pairs(12)], step=step) for step in range(4)]
    for prepared in steps[:3]:
        stepper(prepared, stop=False)
    found: dict[str, Any] = {}
    if device.type == "cuda":
        found["synchronizations"] = count_synchronizations(
            lambda: stepper(steps[3], stop=False), warm=False
        )
    else:
        stepper(steps[3], stop=False)
    found["step_loss"] = stepper.finish()[-1].terms["loss"]
    return found


def make_stepper(name: str, device: Any, folder: Path, **changes: Any) -> tuple[Any, Any]:
    """The trainer's stepper of a small method, and what makes its pairs of a caption's length."""
    import torch

    from maskclip_bench.config import validate
    from maskclip_bench.pretrain.assembly import prepare
    from maskclip_bench.pretrain.methods import build_method
    from maskclip_bench.pretrain.recipe import Recipe, load_recipe
    from maskclip_bench.pretrain.run_length import RunLength
    from maskclip_bench.pretrain.step import Stepper

    values = load_recipe("demo/clip").model_dump(mode="json") | changes
    values["method"] = {"name": name, **small_fields(name, folder)}
    recipe = validate(values, Recipe, where="gpu_check")
    torch.manual_seed(0)
    method = build_method(name, recipe.method_fields(), recipe.model)
    strategy, optimizer = prepare(recipe, method, device)
    length = RunLength.of(recipe, batches_per_epoch=100)
    stepper = Stepper(
        recipe,
        method,
        strategy=strategy,
        optimizer=optimizer,
        length=length,
        device=device,
        decide_on_device=True,
    )
    return stepper, partial(raw_pairs, recipe.model, method.num_ssl_views)


def raw_pairs(config: Any, num_ssl_views: int, length: int) -> Any:
    """16 pairs of noise for a model's config; captions have `length` tokens."""
    import torch

    from maskclip_bench.data.batch import RawBatch

    size, vocab_size = config.image_size, config.text.vocab_size
    generator = torch.Generator().manual_seed(0)
    shape = (1 + num_ssl_views, 16, 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, vocab_size - 2, (16, length), generator=generator)
    tokens[:, 0], tokens[:, -1] = vocab_size - 2, vocab_size - 1
    return RawBatch(images[0], tokens, tuple(images[1:]), [str(n) for n in range(16)])


def to_device(batch: Any, device: Any) -> Any:
    """A batch with its tensors on a device; captions stay known on the CPU."""
    from dataclasses import replace

    return replace(
        batch,
        images=batch.images.to(device),
        tokens=batch.tokens.to(device),
        ssl_views=tuple(view.to(device) for view in batch.ssl_views),
    )


def count_synchronizations(work: Callable[[], Any], *, warm: bool = True) -> int:
    """How often the host waits for the device, as torch's debug mode reports it."""
    import torch

    if warm:
        work()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(w.message) for w in caught)


def check_collectives(device: Any) -> dict[str, Any]:
    """Nccl's reduce_scatter and one FSDP2 step, in a group of one process."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    backend = "nccl" if device.type == "cuda" else "gloo"
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    dist.init_process_group(backend, rank=0, world_size=1)
    try:
        given, taken = torch.arange(8.0, device=device), torch.empty(8, device=device)
        if backend == "nccl":
            dist.reduce_scatter_tensor(taken, given)
        else:
            taken.copy_(given)
        torch.manual_seed(0)
        plain = torch.nn.Linear(16, 16).to(device)
        images = torch.randn(4, 16, device=device)
        expected = plain(images).sum()
        sharded = fully_shard(plain)
        return {
            "backend": backend,
            "reduce_scatter_equal": bool(torch.equal(given, taken)),
            "fsdp_difference": float((sharded(images).sum() - expected).abs().detach()),
        }
    finally:
        dist.destroy_process_group()


def correctness(options: argparse.Namespace, report: Callable[..., None]) -> None:
    """Every method, then the collectives."""
    import torch

    from maskclip_bench.pretrain.methods import METHODS

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = teacher_folder(Path(temporary))
        for name in METHODS:
            report(f"method {name}", **attempt(check_method, name, device, folder))
    report("collectives", **attempt(check_collectives, device))


def teacher_folder(folder: Path) -> Path:
    """A tiny open_clip folder, for MVP's frozen teacher."""
    import torch
    from safetensors.torch import save_file

    from maskclip_bench.modeling import build_model, open_clip_config
    from maskclip_bench.testing import tiny_model

    torch.manual_seed(1)
    config = open_clip_config(tiny_model(), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(build_model(tiny_model()).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def attempt(work: Callable[..., dict[str, Any]], *given: Any, **named: Any) -> dict[str, Any]:
    """What `work` returns, or its error as a field."""
    try:
        return work(*given, **named)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def compiled(options: argparse.Namespace, report: Callable[..., None]) -> None:
    """Compiled steps beside plain ones, of the methods that are built differently most."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(options.device)
    for name in METHODS_COMPILED:
        report(f"{name}, fp32", **attempt(compare_compiled, name, device))


def compare_compiled(name: str, device: Any) -> dict[str, Any]:
    """The largest difference of any term of the loss over four steps; seconds of the first."""
    import torch

    losses: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    found: dict[str, Any] = {}
    for compiled, terms in losses.items():
        stepper, pairs = make_stepper(name, device, Path(), precision="fp32", compile=compiled)
        for step in range(4):
            began = time.perf_counter()
            prepared = stepper.preparation([pairs(8 + step)], step=step)
            terms += [result.terms for result in stepper(prepared, stop=False)]
            if compiled and step == 0:
                found["first_step_seconds"] = time.perf_counter() - began
        terms += [result.terms for result in stepper.finish()]
        if compiled:
            found["graphs"] = int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    found["largest_loss_difference"] = max(
        abs(ours[term] - theirs[term])
        for ours, theirs in zip(losses[True], losses[False], strict=True)
        for term in theirs
    )
    return found | {"steps": len(losses[True]), "last_loss": losses[False][-1]["loss"]}


# --- speed ---------------------------------------------------------------------------------------


def step_options(options: argparse.Namespace, batch_size: int) -> argparse.Namespace:
    """What `benchmarks/pretrain_step.py` is told."""
    return argparse.Namespace(
        device=options.device,
        batch_size=batch_size,
        precision="bf16",
        clock="wall",
        arch="vit-s-16" if options.tiny else "vit-b-16",
        warmup=1 if options.tiny else 3,
        repeats=2 if options.tiny else 5,
        in_row=1 if options.tiny else 4,
    )


def speed(options: argparse.Namespace, report: Callable[..., None]) -> None:
    """Steps of each method beside the plain step."""
    import torch

    bench = load_module("benchmarks/pretrain_step.py")
    assert bench is not None
    sizes = [4] if options.tiny else [256, 128, 512]
    runs = [(size, name, False) for size in sizes for name in (bench.PLAIN, *METHODS_TIMED)]
    if not options.tiny:  # last, because it is slow to begin
        runs += [(sizes[0], name, True) for name in reversed(METHODS_TIMED)]
    given = step_options(options, sizes[0])
    config, peak = bench.model_config(given.arch), bench.product_peak(given)
    plain: dict[int, float] = {}
    for size, name, compiled in runs:
        given = step_options(options, size)
        found = attempt(timing, bench, name, config, given, peak, compiled=compiled)
        if name == bench.PLAIN:
            plain[size] = found.get("seconds", math.nan)
        elif "seconds" in found:
            found["ratio_to_plain"] = found["seconds"] / plain[size]
        report(f"{name}, {size} images{', compiled' if compiled else ''}", **found)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if (name, size, compiled) == ("maskclip", sizes[0], False):
            report(f"maskclip, {size} images: kernels", **attempt(kernels, bench, config, given))


def timing(
    bench: Any, name: str, config: Any, given: Any, peak: float, *, compiled: bool = False
) -> dict[str, Any]:
    """Median seconds of a step, images/s, share of the product's speed, peak memory."""
    import torch

    cuda = given.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    if compiled:
        torch._dynamo.reset()
    began = time.perf_counter()
    step = bench.make_step(name, config, given, compiled=compiled)
    operations = None if compiled else bench.count_operations(step)
    for number in range(given.warmup):
        bench.timed(step, number, given)
    ready = time.perf_counter() - began
    seconds = [bench.timed(step, turn, given, count=given.in_row) for turn in range(given.repeats)]
    median = statistics.median(seconds)
    began = time.perf_counter()
    step(0)
    found = {
        "seconds": median,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "ready_after": ready,
        "host_seconds": time.perf_counter() - began,  # until all its work is handed over
        "images_per_second": given.batch_size / median,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    }
    if operations is not None:
        found["share_of_product"] = operations / peak / median
    return found


def kernels(bench: Any, config: Any, given: argparse.Namespace, count: int = 12) -> dict[str, Any]:
    """Milliseconds of a MaskCLIP step on the device, and of the kernels that take longest."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    step = bench.make_step("maskclip", config, given)
    step(0)
    cuda = given.device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        step(1)
        if cuda:
            torch.cuda.synchronize()
    spent = [
        ((event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3, event)
        for event in profiled.key_averages()
    ]
    spent.sort(key=lambda pair: pair[0], reverse=True)
    longest = [f"{ms:.2f} ms in {event.count}: {event.key[:90]}" for ms, event in spent[:count]]
    return {"all_ms": sum(ms for ms, _ in spent), "longest": "; ".join(longest)}


# --- loader, features, dense ---------------------------------------------------------------------


def loader(options: argparse.Namespace, report: Callable[..., None]) -> None:
    """What the loader gives on a core and on all, and what a run makes of it."""
    command = [sys.executable, str(ROOT / "benchmarks/loader.py"), "--rounds", "2"]
    command += ["--samples", "16", "--batch", "8", "--size", "32"] if options.tiny else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    report("loader, one core", rc=done.returncode, output=(done.stdout or done.stderr)[-3000:])
    report("run fed by the loader", **attempt(run_fed_by_loader, options))
    bench = load_module("benchmarks/pretrain_step.py")
    assert bench is not None
    given = step_options(options, 4 if options.tiny else 256)
    config = bench.model_config(given.arch)
    peak = bench.product_peak(given)
    found = attempt(timing, bench, "clip", config, given, peak)
    report(f"{given.arch}, batches on the device", **found)


def run_fed_by_loader(options: argparse.Namespace) -> dict[str, Any]:
    """CLIP by the trainer on photographs of 500 x 375 pixels, all cores decoding."""
    from maskclip_bench.config import merge, validate
    from maskclip_bench.pretrain.recipe import Recipe, load_recipe
    from maskclip_bench.pretrain.trainer import train
    from maskclip_bench.training.logs import read_log

    bench = load_module("benchmarks/loader.py")
    assert bench is not None
    size, steps = (4, 3) if options.tiny else (256, 24)
    workers = 1 if options.tiny else max(1, (os.cpu_count() or 1) - 1)
    changes = {
        "global_batch_size": size,
        "num_pairs": size * steps,
        "epochs": None,
        "data": {
            "source": {"path": "photos-*.tar", "caption_fields": ["captions"]},
            "num_workers": workers,
        },
        "log": {"every_steps": 1, "tensorboard": False},
        "optimizer": {"warmup_steps": 1, "warmup_epochs": None},
    }
    if options.tiny:
        changes["model"] = {"vision": {"timm_model": "vit_small_patch16_224"}}
    values = merge(load_recipe("clip_vit-b-16_cc3m").model_dump(mode="json"), changes)
    recipe = validate(values, Recipe, where="gpu_check")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jpegs = bench.draw_jpegs(64, width=500, height=375)
        repeated = [jpegs[index % len(jpegs)] for index in range(size * 8)]
        bench.write_shards(folder, repeated, num_shards=4)
        train(recipe, output=folder / "run", data_root=folder, device=options.device)
        lines = [line for line in read_log(folder / "run") if "images_per_second" in line]
    later = lines[len(lines) // 2 :]
    return {
        "workers": workers,
        "images_per_second": statistics.median(line["images_per_second"] for line in later),
        "data_wait_fraction": statistics.median(line["data_wait_fraction"] for line in later),
    }


def features(options: argparse.Namespace, report: Callable[..., None]) -> None:
    """Images a second of a ViT-B/16 that reads images on the device."""
    import timm
    import torch

    device = torch.device(options.device)
    size = 8 if options.tiny else 256
    name = "vit_tiny_patch16_224" if options.tiny else "vit_base_patch16_224"
    model = timm.create_model(name, num_classes=0).to(device).eval()
    images = torch.randn(size, 3, 224, 224, device=device)
    for label, low, compiled in (
        ("fp32", False, False),
        ("bf16", True, False),
        ("bf16, compiled", True, True),
    ):
        if compiled and options.tiny:
            continue
        run = torch.compile(model) if compiled else model

        def once(run: Any = run, low: bool = low) -> None:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=low):
                run(images)
            if device.type == "cuda":
                torch.cuda.synchronize()

        once()
        once()
        began = time.perf_counter()
        repeats = 2 if options.tiny else 10
        for _ in range(repeats):
            once()
        rate = repeats * size / (time.perf_counter() - began)
        report(f"features, {label}", images_per_second=rate)


def dense(options: argparse.Namespace, report: Callable[..., None]) -> None:
    """Dense training iterations and the adapter's overhead, where OpenMMLab is installed."""
    import torch

    missing = [name for name in DENSE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        report("dense", skipped=f"not installed here: {', '.join(missing)}")
        return
    bench = load_module("benchmarks/dense.py")
    assert bench is not None
    device = torch.device(options.device)
    for model, size in bench.SIZES.items():
        for bf16 in (False, True):
            given = argparse.Namespace(
                model=model,
                image_size=128 if options.tiny else size,
                batch_size=2,
                iterations=1 if options.tiny else 8,
                warmup=0 if options.tiny else 3,
                pairs=1 if options.tiny else 6,
                bf16=bf16,
            )
            what = f"ViT-B/16, {given.image_size} px, {'bf16' if bf16 else 'fp32'}"
            report(f"{model}, {what}", **attempt(dense_iteration, bench, given, device))
            if model == "upernet":
                report(f"adapter, {what}", **attempt(adapter_overhead, bench, given, device))


def dense_iteration(bench: Any, given: argparse.Namespace, device: Any) -> dict[str, Any]:
    """Seconds of an iteration and of its parts, and peak memory."""
    import torch

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    parts = bench.split_iteration(given, device)
    return {
        "iteration": sum(parts.values()),
        **parts,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    }


def adapter_overhead(bench: Any, given: argparse.Namespace, device: Any) -> dict[str, Any]:
    """What `MaskCLIPViT` adds to the trunk it wraps, forward and backward."""
    trunk, adapter, ratios = bench.adapter_cost(given, device)
    return {
        "trunk": trunk,
        "adapter": adapter,
        "added": statistics.median(ratios) - 1,
        "added_range": f"{min(ratios) - 1:+.3f} to {max(ratios) - 1:+.3f}",
    }


# --- many passes ---------------------------------------------------------------------------------


def many_passes(options: argparse.Namespace, report: Callable[..., None]) -> None:
    """CLIP and MaskCLIP of the study `demo_long`, their pairs held on the device."""
    ends = time.monotonic() + (options.seconds or PARTS["many_passes"])
    root = options.output / "many_passes"
    began = time.monotonic()
    num_pairs = draw_pairs(root, shard=16 if options.tiny else 256)
    report("drawing", pairs=num_pairs, seconds=time.monotonic() - began)
    report("held batches", **attempt(check_held, options, root))
    shares = sum(entry[-1] for entry in MANY_PASSES)
    for what, row, fields, at_once, share in MANY_PASSES:
        seconds = share / shares * max(0.0, ends - time.monotonic() - RESERVED)
        shares -= share
        wanted = Passes(root, row, seconds, **fields)
        if options.tiny and (at_once > 1 or wanted.compiled):  # minutes on a CPU
            continue
        if at_once == 1:
            report(what, **attempt(passes, options, wanted))
        else:
            report(f"{what}: {at_once} runs", **attempt(passes_at_once, options, wanted, at_once))


class Passes(NamedTuple):
    """One run of many_passes: its data, its row, its seconds, and how its batches come."""

    root: Path
    row: str
    seconds: float
    held: str = "device"
    compiled: bool = False
    number: int = 0


def passes_at_once(options: argparse.Namespace, wanted: Passes, count: int) -> dict[str, Any]:
    """The same run several times at once, each in a process of its own: pairs/s of all."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    runs = [wanted._replace(number=number) for number in range(count)]
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        found = list(pool.map(passes, [options] * count, runs))
    rates = [run["pairs_per_second"] for run in found]
    return {
        "pairs_per_second": sum(rates),
        "of_one": f"{min(rates):.0f} to {max(rates):.0f}",
        "goal_pairs_per_second": GOAL_PAIRS / 60,
        "seconds_of_600000": GOAL_PAIRS / sum(rates),
    }


def draw_pairs(root: Path, *, shard: int) -> int:
    """Draw the pairs of the study's first seed, and nothing else of its world; returns how many."""
    from concurrent.futures import ProcessPoolExecutor

    from maskclip_bench.data.demo.layouts import make_piece, pieces
    from maskclip_bench.data.demo.sizes import DemoSizes

    sizes = DemoSizes(pretrain=7 * shard, shard=shard)  # five shards to train on, two held out
    draw = partial(make_piece, world=root / "demo_long", sizes=sizes, seed=0, held_out=["emojione"])
    with ProcessPoolExecutor(min(7, os.cpu_count() or 1)) as pool:
        list(pool.map(draw, pieces(sizes, "pretrain")))
    return sizes.pretrain


def long_recipe(options: argparse.Namespace, row: str, held: str, *, compiled: bool = False) -> Any:
    """The recipe of a row, its checkpoints left out."""
    from maskclip_bench.pretrain.recipe import load_recipe

    changes = [f"data.held={held}", f"data.num_workers={0 if options.tiny else 1}"]
    changes += ["checkpoint={every_steps: 1000000, keep: 1}", f"compile={str(compiled).lower()}"]
    recipe = load_recipe(f"demo_long/{row}", changes)
    steps = options.cut_steps or (4 if options.tiny else None)
    if steps is None:
        return recipe
    cut = {"epochs": None, "num_pairs": steps * recipe.global_batch_size}
    log = recipe.log.model_copy(update={"every_steps": 1})
    return recipe.model_copy(update={**cut, "log": log})


def check_held(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Held batches beside the loader's, and how often the host waits for one."""
    import torch

    from maskclip_bench.data.pairs import PairLoader
    from maskclip_bench.pretrain.assembly import tokenizer_of

    device = torch.device(options.device)

    def loader(held: str) -> PairLoader:
        recipe = long_recipe(options, "clip", held)
        return PairLoader(
            recipe.data.model_copy(update={"num_workers": 0}),
            data_root=root,
            tokenizer=tokenizer_of(recipe),
            image_size=recipe.model.image_size,
            num_ssl_views=2,
            batch_size_per_gpu=recipe.global_batch_size,
            seed=0,
            device=device,
        )

    there, here = loader("device"), loader("none")
    largest, differing, total = 0, 0, 0
    for ours, theirs in zip(there.epoch(0), here.epoch(0), strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.tokens, theirs.tokens)
        pairs = zip(
            (ours.images, *ours.ssl_images), (theirs.images, *theirs.ssl_images), strict=True
        )
        for one, other in pairs:
            difference = (one.cpu().int() - other.int()).abs()
            largest = max(largest, int(difference.max()))
            differing += int((difference > 0).sum())
            total += difference.numel()
    found = {"largest_difference": largest, "share_differing": differing / total}
    if device.type == "cuda":
        batches = there.epoch(1)
        next(batches)
        found["synchronizations"] = count_synchronizations(lambda: next(batches), warm=False)
    return found


def passes(options: argparse.Namespace, wanted: Passes) -> dict[str, Any]:
    """A run by the trainer, for a time: pairs/s between two lines of its log, and its losses."""
    from maskclip_bench.pretrain.trainer import train
    from maskclip_bench.training.interruption import RunStopped
    from maskclip_bench.training.logs import read_log

    if wanted.seconds < 1:
        return {"skipped": "no time was left"}
    recipe = long_recipe(options, wanted.row, wanted.held, compiled=wanted.compiled)
    kind = f"{wanted.row}_{wanted.held}{'_compiled' if wanted.compiled else ''}"
    folder = wanted.root / f"{kind}_{wanted.number}"
    limited = not options.tiny and not options.cut_steps
    signals = [*STOP_SIGNALS, *([signal.SIGALRM] if limited else [])]
    began = time.monotonic()
    if limited:  # again and again: while the run is being made nothing listens
        signal.signal(signal.SIGALRM, lambda *given: None)
        signal.setitimer(signal.ITIMER_REAL, wanted.seconds, 1.0)
    stopped = False
    try:
        train(
            recipe,
            output=folder,
            data_root=wanted.root,
            device=options.device,
            stop_signals=signals,
        )
    except RunStopped:
        stopped = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    took = time.monotonic() - began
    lines = read_log(folder)
    steps = [line for line in lines if "images_per_second" in line]
    if not steps:
        return {"seconds": took, "skipped": "stopped before the first line of its log"}
    later = steps[len(steps) // 4 :]  # the first ones make kernels and warm up
    rate = statistics.median(line["images_per_second"] for line in later)
    shown = {
        key: next((line[key] for line in reversed(lines) if key in line), None)
        for key in ("loss", "held_out_contrastive_loss", "data_wait_fraction")
    }
    return {
        "pairs": round(steps[-1]["step"] * recipe.global_batch_size),
        "seconds": took,
        "stopped": stopped,
        "pairs_per_second": rate,
        "goal_pairs_per_second": GOAL_PAIRS / 60,
        "seconds_of_600000": GOAL_PAIRS / rate,
        **shown,
    }


# --- frame ---------------------------------------------------------------------------------------


def load_module(path: str) -> ModuleType | None:
    """A Python file of this checkout as a module; None if it cannot be imported."""
    file = ROOT / path
    try:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        return module
    except ImportError:
        return None


def machine(device: str) -> dict[str, Any]:
    """What it ran on."""
    import torch

    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def run_part(name: str, options: argparse.Namespace) -> None:
    """Run a part in this process; each number is written as soon as it is there."""
    path = options.output / f"{name}.jsonl"

    def report(what: str, **numbers: Any) -> None:
        print(f"  {what}: {numbers}", flush=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **numbers}) + "\n")

    warnings.simplefilter("ignore")
    globals()[name](options, report)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """What a part has written so far."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def to_markdown(found: dict[str, Any]) -> str:
    """One table a part, one line a number."""
    lines = [f"# GPU check: {found['machine']['device']}", ""]
    lines.append(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    for name, part in found["parts"].items():
        lines += ["", f"## {name} ({part['seconds']:.0f} s, {part['status']})", ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        if not columns:
            continue
        lines.append("| " + " | ".join(columns) + " |")
        lines.append("|" + " --- |" * len(columns))
        for row in part["rows"]:
            cells = (row.get(column, "") for column in columns)
            lines.append("| " + " | ".join(_cell(value) for value in cells) + " |")
    return "\n".join(lines) + "\n"


def write(found: dict[str, Any], folder: Path) -> None:
    """Both files, with what there is so far."""
    (folder / "gpu_check.json").write_text(json.dumps(found, indent=2))
    (folder / "gpu_check.md").write_text(to_markdown(found))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).replace("|", "/").split())


def main() -> None:
    """Run the parts one after the other, each in its own process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu_check"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a rehearsal on a CPU")
    parser.add_argument(
        "--cut-steps", type=int, default=0, help="steps of each run of many_passes, to rehearse it"
    )
    parser.add_argument("--seconds-in-all", type=float, default=WHOLE_SECONDS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.part:
        run_part(options.part, options)
        return
    found: dict[str, Any] = {"machine": machine(options.device), "parts": {}}
    started = time.monotonic()
    for name in options.parts:
        left = options.seconds_in_all - (time.monotonic() - started)
        seconds = min(PARTS[name], left)
        if seconds < SHORTEST and not options.tiny:
            found["parts"][name] = {"status": "no time was left", "seconds": 0.0, "rows": []}
            write(found, options.output)
            continue
        (options.output / f"{name}.jsonl").unlink(missing_ok=True)
        command = [sys.executable, __file__, "--part", name, "--output", str(options.output)]
        command += ["--device", options.device, *(["--tiny"] if options.tiny else [])]
        command += ["--seconds", str(seconds), "--cut-steps", str(options.cut_steps)]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        print(f"{name} (at most {seconds:.0f} s)", flush=True)
        began = time.monotonic()
        try:
            limit = None if options.tiny else seconds
            code = subprocess.run(command, timeout=limit, check=False, env=environment).returncode
            status = "ok" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:.0f} s"
        found["parts"][name] = {
            "status": status,
            "seconds": time.monotonic() - began,
            "rows": list(rows_of(options.output / f"{name}.jsonl")),
        }
        write(found, options.output)
    print((options.output / "gpu_check.md").read_text())


if __name__ == "__main__":
    main()
