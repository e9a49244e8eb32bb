"""Reads and copies of one step of every method, counted on a CPU (`training/device_trace.py`).

python benchmarks/syncs.py
"""

from __future__ import annotations

import torch

from maskclip_bench.config import validate
from maskclip_bench.data.batch import RawBatch, with_tensors
from maskclip_bench.pretrain.assembly import prepare
from maskclip_bench.pretrain.methods import METHODS, build_method
from maskclip_bench.pretrain.recipe import Recipe, load_recipe
from maskclip_bench.pretrain.run_length import RunLength
from maskclip_bench.pretrain.step import Stepper
from maskclip_bench.training.device_trace import DeviceTrace

CPU = torch.device("cpu")
BATCH_SIZE = 8
LEFT_OUT = ("mvp",)  # needs the weights of a teacher


def batch(method: torch.nn.Module, recipe: Recipe, seed: int) -> RawBatch:
    """Noise, and captions of one length."""
    generator = torch.Generator().manual_seed(seed)
    size, vocab_size = recipe.model.image_size, recipe.model.text.vocab_size
    count = BATCH_SIZE // recipe.accumulation_steps
    shape = (1 + int(method.num_ssl_views), count, 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, vocab_size - 2, (count, 12), generator=generator)
    tokens[:, 0], tokens[:, -1] = vocab_size - 2, vocab_size - 1
    return RawBatch(images[0], tokens, tuple(images[1:]), [str(n) for n in range(count)])


def count(name: str, accumulation_steps: int) -> tuple[int, int]:
    """(reads, copies) of a step that is not the first."""
    values = load_recipe("demo/clip").model_dump(mode="json")
    values |= {"method": {"name": name}, "accumulation_steps": accumulation_steps}
    if name == "simmim":
        values["method"]["mask_patch_size"] = 16  # of 48 px, in patches of 8
    recipe = validate(values, Recipe, where="syncs")
    method = build_method(name, recipe.method_fields(), recipe.model)
    strategy, optimizer = prepare(recipe, method, CPU)
    stepper = Stepper(
        recipe,
        method,
        strategy=strategy,
        optimizer=optimizer,
        length=RunLength.of(recipe, batches_per_epoch=100),
        device=CPU,
        decide_on_device=True,
    )
    raws = [batch(method, recipe, seed) for seed in range(accumulation_steps)]
    stepper(stepper.preparation(raws, step=0), stop=False)
    steps = [stepper.preparation(raws, step=step) for step in (1, 2)]
    trace = DeviceTrace()
    trace.on_device([*method.parameters(), *method.buffers()])
    trace.on_device(value for state in optimizer.state.values() for value in state.values())

    def mark(tensor: torch.Tensor) -> torch.Tensor:
        trace.on_device([tensor])
        return tensor

    for prepared in steps:
        for part in prepared.parts:
            with_tensors((part.raw, part.draws, part.drawn), mark)
    with trace:
        stepper(steps[0], stop=False)  # a step later its numbers are read
        trace.copies.clear()
        stepper(steps[1], stop=False)
    return sum(trace.reads.values()), sum(trace.copies.values())


def main() -> None:
    """Print the table."""
    print("| method | reads | copies | reads, two micro-batches | copies |")
    print("| --- | --- | --- | --- | --- |")
    for name in METHODS:
        if name not in LEFT_OUT:
            cells = [*count(name, 1), *count(name, 2)]
            print(f"| {name} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
