"""One read a step for every method, nothing copied in it; prepared batches equal drawn ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from maskclip_bench import distributed
from maskclip_bench.data.batch import RawBatch
from maskclip_bench.pretrain.methods import METHODS, build_method
from maskclip_bench.pretrain.preparation import Preparation, Prepared, same_length
from maskclip_bench.pretrain.run_length import RunLength
from maskclip_bench.pretrain.step import Stepper
from maskclip_bench.training.device_trace import DeviceTrace
from maskclip_bench.training.optim import build_optimizer
from maskclip_bench.training.parallel import DDPStrategy

CPU = torch.device("cpu")


def raw(method: Any, *, size: int = 4, length: int = 6, seed: int = 0) -> RawBatch:
    generator = torch.Generator().manual_seed(seed)
    shape = (1 + method.num_ssl_views, size, 3, 32, 32)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    end = method.model.text.vocab_size - 1
    tokens = torch.randint(1, end - 1, (size, length), generator=generator)
    tokens[:, -1] = end
    return RawBatch(images[0], tokens, tuple(images[1:]), [str(n) for n in range(size)])


def run_of(
    tiny: ModuleType,
    name: str,
    *,
    decide_on_device: bool = True,
    **changes: Any,
) -> tuple[Stepper, Any, Any]:
    recipe = tiny.tiny_recipe(name, **changes)
    torch.manual_seed(0)
    method = build_method(name, recipe.method_fields(), recipe.model).train()
    optimizer = build_optimizer(
        method, lr=0.1, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-8, no_weight_decay=set()
    )
    stepper = Stepper(
        recipe,
        method,
        strategy=DDPStrategy(method, device=CPU, accumulates=recipe.accumulation_steps > 1),
        optimizer=optimizer,
        length=RunLength.of(recipe, batches_per_epoch=4),
        device=CPU,
        decide_on_device=decide_on_device,
    )
    return stepper, method, optimizer


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_step__reads_once_and_copies_nothing(
    tiny: ModuleType, tmp_path: Path, name: str, accumulation: int
) -> None:
    """The read is of the step before, which is done by then."""
    fields = tiny.teacher_fields(tmp_path) if name == "mvp" else {}
    stepper, method, optimizer = run_of(tiny, name, fields=fields, accumulation_steps=accumulation)
    raws = [raw(method, seed=number) for number in range(accumulation)]
    stepper(stepper.preparation(raws, step=0), stop=False)
    steps = [stepper.preparation(raws, step=step) for step in (1, 2)]
    trace = DeviceTrace()
    state = [value for values in optimizer.state.values() for value in values.values()]
    trace.on_device([*method.parameters(), *method.buffers(), *state])
    trace.on_device(tensor for prepared in steps for tensor in tensors_of(prepared))
    with trace:
        stepper(steps[0], stop=False)
        assert not +trace.reads  # of a step that was not traced
        (result,) = stepper(steps[1], stop=False)
    assert result.prepared.step == 1
    assert sum(trace.reads.values()) == 1, dict(trace.reads)
    assert all(line.startswith("readback.py") for line in trace.reads)
    assert not +trace.copies, dict(+trace.copies)


@pytest.fixture
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process, which passes for several."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("name", METHODS)
def test_step__reads_once_over_several_processes(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Captions of another rank may be longer: nothing waits to know by how much."""
    fields = tiny.teacher_fields(tmp_path) if name == "mvp" else {}
    stepper, method, optimizer = run_of(tiny, name, fields=fields)
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    steps = [stepper.preparation([raw(method)], step=step) for step in (0, 1, 2)]
    stepper(steps[0], stop=False)
    trace = DeviceTrace()
    state = [value for values in optimizer.state.values() for value in values.values()]
    trace.on_device([*method.parameters(), *method.buffers(), *state])
    trace.on_device(tensor for prepared in steps[1:] for tensor in tensors_of(prepared))
    with trace:
        stepper(steps[1], stop=False)
        assert not +trace.reads
        stepper(steps[2], stop=False)
    assert sum(trace.reads.values()) == 1, dict(trace.reads)
    assert all(line.startswith("readback.py") for line in trace.reads)


def test_step__where_the_host_decides_it_waits_once(
    tiny: ModuleType,
) -> None:
    """As with FSDP2; here on a CPU the numbers of the step are read right after it."""
    stepper, method, optimizer = run_of(tiny, "maskclip", decide_on_device=False)
    steps = [stepper.preparation([raw(method)], step=step) for step in (0, 1)]
    stepper(steps[0], stop=False)
    trace = DeviceTrace()
    state = [value for values in optimizer.state.values() for value in values.values()]
    trace.on_device([*method.parameters(), *method.buffers(), *state])
    trace.on_device(tensors_of(steps[1]))
    with trace:
        stepper(steps[1], stop=False)
    lines = Counter(line.split(":")[0] for line in (+trace.reads).elements())
    assert lines == {"step.py": 1, "readback.py": 1}, dict(+trace.reads)
    assert not +trace.copies, dict(+trace.copies)


def tensors_of(prepared: Prepared) -> list[Tensor]:
    """What `Preparation` copied to the device."""
    from maskclip_bench.data.batch import with_tensors

    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    for part in prepared.parts:
        with_tensors((part.raw, part.draws, part.drawn), keep)
    return found


@pytest.mark.parametrize("name", ["clip", "slip", "clip_mae", "maskclip"])
def test_preparation__equals_drawing_in_the_step(tiny: ModuleType, name: str) -> None:
    stepper, method, _ = run_of(tiny, name)
    (ready,) = stepper.preparation.open(stepper.preparation([raw(method)], step=3))
    assert ready.drawn is not None
    (other,) = stepper.preparation.open(stepper.preparation([raw(method)], step=3))
    generator = torch.Generator()
    generator.set_state(other.generator.get_state())
    assert torch.equal(ready.images, other.images)
    for ours, theirs in zip(ready.ssl_views, other.ssl_views, strict=True):
        assert torch.equal(ours, theirs)
    expected = method(ready)["loss"]
    # The same draws, made by `encode` itself: the generator is put where it was before them.
    from maskclip_bench.runtime import derive_seed

    seed = derive_seed(0, "step", 3, 0, 0)
    start = torch.Generator().manual_seed(seed)
    stepper.preparation._augment.draw(raw(method), start)
    other.generator, other.drawn = start, None
    assert torch.equal(method(other)["loss"], expected)


class Ahead(Preparation):
    """As on a GPU: each step is prepared before the one before it is handed on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stream: Any = "another"
        self.told: list[str] = []

    def __call__(self, raws: Any, *, step: int, num_replaced: int = 0) -> Prepared:
        self.told.append(f"prepare {step}")
        return Prepared(step, raws, [], num_replaced)


@pytest.mark.parametrize("first", [0, 2])
def test_ahead__one_step_and_no_further_than_the_last(tiny: ModuleType, first: int) -> None:
    recipe = tiny.tiny_recipe()
    ahead = Ahead(recipe, build_method("clip", {}, recipe.model), device=CPU)
    read: list[int] = []

    def batches() -> Any:
        while True:
            read.append(1)
            yield []

    steps = ahead.ahead(
        batches(), first_step=first, last_step=3, num_replaced=lambda: 10 * len(read)
    )
    for prepared in steps:
        ahead.told.append(f"do {prepared.step}")
        assert prepared.num_replaced == 10 * (prepared.step - first + 1)
    expected = [f"prepare {first}"]
    for step in range(first, 3):
        expected += [f"prepare {step + 1}", f"do {step}"]
    assert ahead.told == [*expected, "do 3"]


def test_same_length(tiny: ModuleType) -> None:
    recipe = tiny.tiny_recipe()
    method = build_method("clip", {}, recipe.model)
    short, long = same_length([raw(method, length=3), raw(method, length=6, seed=1)])
    assert short.tokens.shape == long.tokens.shape == (4, 6)
    assert short.tokens[:, 3:].eq(0).all()
    assert short.keys == ["0", "1", "2", "3"]


@pytest.mark.gpu
def test_gpu__prepared_on_a_stream_of_its_own(tiny: ModuleType, tmp_path: Path) -> None:
    stepper, method, _ = run_of(tiny, "slip")
    cuda = Preparation(tiny.tiny_recipe("slip"), method, device=torch.device("cuda"))
    (there,) = cuda.open(cuda([raw(method)], step=3))
    (here,) = stepper.preparation.open(stepper.preparation([raw(method)], step=3))
    for ours, theirs in zip(here.ssl_views, there.ssl_views, strict=True):
        torch.testing.assert_close(ours, theirs.cpu(), atol=1e-4, rtol=0)
