"""A tiny recipe, and a script that trains it: in a process to be killed, or in one of several.

python run_tiny.py DATA_ROOT '[{"output": ..., "method": "clip", ...}]'
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import timm.models.vision_transformer as timm_vit
import torch
from safetensors.torch import save_file
from timm.models import generate_default_cfgs, register_model

from maskclip_bench import distributed
from maskclip_bench.config import merge, validate
from maskclip_bench.data.tokenizer import TokenizerConfig, load_tokenizer
from maskclip_bench.modeling import build_model, open_clip_config
from maskclip_bench.pretrain import assembly, trainer
from maskclip_bench.pretrain.launch import launch_here
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.pretrain.run_length import RunLength
from maskclip_bench.pretrain.step import Stepper

TINY_VIT = "vit_engine_patch8_32"
NUM_SAMPLES = 72

HEAD = {"ssl_hidden_dim": 16, "ssl_output_dim": 8}
QUANTIZER = {"num_codewords": 16, "codeword_hidden_dim": 16, "codeword_dim": 8}
METHOD_FIELDS: dict[str, dict[str, Any]] = {
    "clip": {},
    "slip": HEAD,
    "clip_mae": {},
    "maskclip": {**QUANTIZER, "text_decoder_depth": 1, "ema_momentum": 0.9},
    "filip": {},
    "simclr": HEAD,
    "mae": {"decoder_depth": 2, "decoder_dim": 24, "decoder_num_heads": 2},
    "simmim": {"mask_patch_size": 16},
    "mvp": {**QUANTIZER, "mask_kind": "random"},  # and a teacher, `teacher_fields`
}


def _register() -> None:
    """The tests' ViT: 2 blocks, 32 wide, 32 px."""
    default_cfgs = generate_default_cfgs(
        {f"{TINY_VIT}.test": {"input_size": (3, 32, 32), "num_classes": 0, "pool_size": None}}
    )

    def vit_engine_patch8_32(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        return timm_vit._create_vision_transformer(
            TINY_VIT, pretrained=pretrained, **{**sizes, **kwargs}
        )

    vit_engine_patch8_32.__module__ = __name__
    sys.modules[__name__].__dict__["default_cfgs"] = default_cfgs
    register_model(vit_engine_patch8_32)


if not timm.is_model(TINY_VIT):
    _register()


def teacher_fields(folder: Path) -> dict[str, Any]:
    """Fields of MVP with a tiny frozen teacher, which is written to a folder."""
    config = tiny_recipe().model
    described = open_clip_config(config, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file(build_model(config).state_dict(), folder / "open_clip_model.safetensors")
    return {"teacher_model": f"local-dir:{folder}", "teacher_pretrained": None}


def tiny_values(
    method: str = "clip", *, fields: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """Plain values of a recipe that trains in a second; `fields` are of the method."""
    tokenizer = {"kind": "demo", "context_length": 24}
    vocab_size = load_tokenizer(TokenizerConfig(**tokenizer)).vocab_size
    values: dict[str, Any] = {
        "name": f"tiny_{method}",
        "world": "demo",
        "method": {"name": method, **METHOD_FIELDS[method], **(fields or {})},
        "model": {
            "proj_dim": 16,
            "image_size": 32,
            "vision": {"timm_model": TINY_VIT},
            "text": {
                "context_length": 24,
                "vocab_size": vocab_size,
                "width": 32,
                "num_heads": 2,
                "depth": 2,
            },
        },
        "tokenizer": tokenizer,
        "data": {"source": {"path": "shapes/shapes-*.tar"}},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "global_batch_size": 16,
        "num_pairs": 16 * 6,
        "precision": "fp32",
        "checkpoint": {"every_steps": 2, "keep": 2},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    return merge(values, changes)


def tiny_recipe(method: str = "clip", **changes: Any) -> Recipe:
    return validate(tiny_values(method, **changes), Recipe, where="tiny recipe")


def tiny_stepper(recipe: Recipe, method: Method, *, batches_per_epoch: int = 8) -> Stepper:
    """Steps of a method on the CPU, as a run prepares them."""
    device = torch.device("cpu")
    strategy, optimizer = assembly.prepare(recipe, method, device)
    length = RunLength.of(recipe, batches_per_epoch=batches_per_epoch)
    return Stepper(
        recipe, method, strategy=strategy, optimizer=optimizer, length=length, device=device
    )


def main(data_root: str, jobs: list[dict[str, Any]]) -> None:
    with distributed.process_group(torch.device("cpu")):
        for job in jobs:
            output = Path(job.pop("output"))
            if stop_after := job.pop("stop_after", 0):
                with _stopping_after(stop_after), contextlib.suppress(KeyboardInterrupt):
                    launch_here(tiny_recipe(**job), output=output, data_root=Path(data_root))
            methods: list[torch.nn.Module] = []
            _remember_methods(methods)
            assembly.COMPILE_BACKEND = "aot_eager"  # needs no compiler of C++
            with _counting_graphs() as graphs:
                launch_here(
                    tiny_recipe(**job), output=output, data_root=Path(data_root), device="cpu"
                )
            (output / f"graphs_{distributed.rank()}.json").write_text(json.dumps(graphs))
            sums = {name: _sum(tensor) for name, tensor in methods[0].state_dict().items()}
            (output / f"weights_{distributed.rank()}.json").write_text(json.dumps(sums))


@contextlib.contextmanager
def _counting_graphs() -> Iterator[list[int]]:
    """After each step, how many graphs were compiled since the run began."""
    from torch._dynamo.utils import counters

    counters.clear()
    counts: list[int] = []
    step = trainer.Stepper.__call__

    def counted(stepper: Any, prepared: Any, *, stop: bool) -> Any:
        results = step(stepper, prepared, stop=stop)
        counts.append(int(counters["stats"]["unique_graphs"]))
        return results

    trainer.Stepper.__call__ = counted  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        trainer.Stepper.__call__ = step  # type: ignore[method-assign]


@contextlib.contextmanager
def _stopping_after(step: int, *, rank: int = 1) -> Iterator[None]:
    """Ask one rank only to stop; all of them do, after the same step."""
    told = trainer.Report.__call__

    def ask(report: Any, state: Any, *, force: bool) -> None:
        told(report, state, force=force)
        if state.step == step - 1 and distributed.rank() == rank:
            signal.raise_signal(signal.SIGTERM)

    trainer.Report.__call__ = ask  # type: ignore[method-assign]
    try:
        yield
    finally:
        trainer.Report.__call__ = told  # type: ignore[method-assign]


def _remember_methods(methods: list[torch.nn.Module]) -> None:
    """Keep the next method that a trainer builds, to look at it when it is trained."""

    def build(*args: Any, **kwargs: Any) -> Any:
        methods.append(build_method(*args, **kwargs))
        return methods[-1]

    trainer.build_method = build


def _sum(tensor: torch.Tensor) -> str:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.double().sum().item().hex()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
