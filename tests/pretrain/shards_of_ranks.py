"""One of several processes that write a checkpoint in shards, or read it into another layout.

python shards_of_ranks.py FOLDER write|read ddp|fsdp
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import run_tiny
import torch
from torch import Tensor

from maskclip_bench import distributed
from maskclip_bench.data.batch import RawBatch
from maskclip_bench.pretrain.assembly import prepare, tokenizer_of
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.run_length import RunLength
from maskclip_bench.pretrain.step import Stepper
from maskclip_bench.training.checkpoint import Checkpoint, CheckpointStore

CPU = torch.device("cpu")
NUM_STEPS = 2


def built(parallel: str, *, seed: int) -> tuple[Any, Any, Any, Any]:
    """Recipe, method, strategy, optimizer; weights of a seed."""
    recipe = run_tiny.tiny_recipe("maskclip", parallel=parallel)
    torch.manual_seed(seed)
    method = build_method("maskclip", recipe.method_fields(), recipe.model, tokenizer_of(recipe))
    return recipe, method, *prepare(recipe, method, CPU)


def raw(method: Any, step: int) -> RawBatch:
    """Noise, another for each rank."""
    generator = torch.Generator().manual_seed(10 * step + distributed.rank())
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    end = method.model.text.vocab_size - 1
    tokens = torch.randint(1, end - 1, (4, 6), generator=generator)
    tokens[:, -1] = end
    return RawBatch(images, tokens, (), list("abcd"))


def write(folder: Path, parallel: str) -> None:
    """Train two steps; write a checkpoint in shards and, to compare, everything whole."""
    recipe, method, strategy, optimizer = built(parallel, seed=0)
    stepper = Stepper(
        recipe,
        method,
        strategy=strategy,
        optimizer=optimizer,
        length=RunLength.of(recipe, batches_per_epoch=8),
        device=CPU,
    )
    for step in range(NUM_STEPS):
        stepper(stepper.preparation([raw(method, step)], step=step), stop=False)
    from maskclip_bench.training.shards import ShardWriter

    writer = ShardWriter()
    recorded = recipe.model_dump(mode="json")
    checkpoint = Checkpoint(NUM_STEPS, {}, {}, {}, recorded, world_size=distributed.world_size())
    store = CheckpointStore(folder, keep=2)
    store.save_in_shards(writer, checkpoint, *strategy.shards(optimizer))
    keep_whole(folder / "written.pt", strategy, optimizer)  # while it is written
    writer.wait()
    writer.close()


def read(folder: Path, parallel: str) -> None:
    """Restore it into a method with other weights, and write everything whole."""
    _, _, strategy, optimizer = built(parallel, seed=1)
    checkpoint = CheckpointStore(folder, keep=2).latest(whole=False)
    assert checkpoint is not None
    assert checkpoint.shards is not None
    strategy.restore_shards(optimizer, checkpoint.shards, checkpoint.optimizer["param_groups"])
    keep_whole(folder / f"read_{parallel}_{distributed.world_size()}.pt", strategy, optimizer)


def keep_whole(path: Path, strategy: Any, optimizer: Any) -> None:
    method, state = strategy.state(optimizer)
    if distributed.is_main():
        clones = {name: value.clone() for name, value in method.items()}
        moments = {
            f"{number}.{key}": value.clone()
            for number, values in state["state"].items()
            for key, value in values.items()
            if isinstance(value, Tensor)
        }
        groups = [{**group, "betas": tuple(group["betas"])} for group in state["param_groups"]]
        torch.save({"method": clones, "moments": moments, "groups": groups}, path)
    distributed.barrier()


if __name__ == "__main__":
    with distributed.process_group(CPU):
        {"write": write, "read": read}[sys.argv[2]](Path(sys.argv[1]), sys.argv[3])
