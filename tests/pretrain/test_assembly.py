from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from maskclip_bench.config import merge, validate
from maskclip_bench.data.batch import RawBatch
from maskclip_bench.errors import ConfigError
from maskclip_bench.pretrain import assembly
from maskclip_bench.pretrain.assembly import compile_blocks, prepare, tokenizer_of
from maskclip_bench.pretrain.methods import METHODS, build_method
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.pretrain.step import Stepper


def raw(method: Any, *, length: int, seed: int) -> RawBatch:
    generator = torch.Generator().manual_seed(seed)
    shape = (1 + method.num_ssl_views, 4, 3, 32, 32)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    end = method.model.text.vocab_size - 1
    tokens = torch.randint(1, end - 1, (4, length), generator=generator)
    tokens[:, -1] = end
    return RawBatch(images[0], tokens, tuple(images[1:]), list("abcd"))


def test_tokenizer_of__another_vocabulary_than_the_models(tiny: ModuleType) -> None:
    assert tokenizer_of(tiny.tiny_recipe()).context_length == 24
    values = merge(tiny.tiny_values(), {"model": {"text": {"vocab_size": 77}}})
    recipe = validate(values, Recipe, where="tiny recipe")
    with pytest.raises(ConfigError, match=r"demo tokenizer has \d+ tokens.*vocab_size is 77"):
        tokenizer_of(recipe)


def test_prepare__optimizer_of_the_recipe(tiny: ModuleType) -> None:
    """Decay for matrices alone; the teacher is not trained; checkpointing reaches the towers."""
    optimizer = {"weight_decay": 0.3, "betas": [0.8, 0.9], "eps": 1e-7}
    recipe = tiny.tiny_recipe("maskclip", optimizer=optimizer, grad_checkpointing=True)
    method = build_method("maskclip", recipe.method_fields(), recipe.model, tokenizer_of(recipe))
    strategy, made = prepare(recipe, method, torch.device("cpu"))
    assert [group["weight_decay"] for group in made.param_groups] == [0.3, 0.0]
    assert made.param_groups[0]["betas"] == (0.8, 0.9)
    assert all(weight.ndim >= 2 for weight in made.param_groups[0]["params"])
    trained = {id(weight) for group in made.param_groups for weight in group["params"]}
    assert trained == {id(weight) for weight in method.parameters() if weight.requires_grad}
    assert strategy.whole_models()[0] is method.model
    assert method.model.visual.trunk.grad_checkpointing
    assert method.model.text.transformer.grad_checkpointing


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How many graphs were compiled since the test began; they are counted, not made faster."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(assembly, "COMPILE_BACKEND", "eager")
    with torch._dynamo.config.patch(optimize_ddp=True, recompile_limit=8):  # put back afterwards
        yield lambda: int(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    torch._dynamo.reset()


def stepper_of(tiny: ModuleType, name: str, **changes: Any) -> tuple[Stepper, Any]:
    recipe = tiny.tiny_recipe(name, **changes)
    torch.manual_seed(0)
    method = build_method(name, recipe.method_fields(), recipe.model, tokenizer_of(recipe))
    return tiny.tiny_stepper(recipe, method), method


def steps_of(
    stepper: Stepper,
    method: Any,
    graphs: Callable[[], int],
    *,
    accumulation: int,
    num_steps: int = 4,
) -> tuple[list[dict[str, float]], list[int]]:
    """Losses of some steps with captions of other lengths, and graphs after each."""
    losses, counts = [], []
    for step in range(num_steps):
        raws = [raw(method, length=4 + step + n, seed=n) for n in range(accumulation)]
        (result,) = stepper(stepper.preparation(raws, step=step), stop=False)
        losses.append(result.terms)
        counts.append(graphs())
    return losses, counts


QUICK = [("clip", 1)]
ALL = [(name, accumulation) for name in METHODS for accumulation in (1, 2)]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own
@pytest.mark.parametrize(
    ("name", "accumulation"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in ALL],
)
def test_prepare__compiled_as_one_graph_once(
    tiny: ModuleType,
    graphs: Callable[[], int],
    tmp_path: Path,
    name: str,
    accumulation: int,
) -> None:
    """In the first step, with captions of any length afterwards; the losses are as uncompiled.

    With micro-batches the first pass over them is a graph of its own, where it computes anything.
    """
    fields = tiny.teacher_fields(tmp_path) if name == "mvp" else {}
    found = []
    for compiled in (True, False):
        stepper, method = stepper_of(
            tiny, name, fields=fields, compile=compiled, accumulation_steps=accumulation
        )
        found.append(steps_of(stepper, method, graphs, accumulation=accumulation))
    (losses, counts), (expected, _) = found
    has_embeddings = bool(
        method.embed(
            stepper.preparation.open(stepper.preparation([raw(method, length=5, seed=0)], step=0))[
                0
            ]
        )
    )
    passes = accumulation if has_embeddings else 1
    assert counts == [passes] * 4
    for one, other in zip(losses, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_prepare__compiled_computes_the_same(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, graphs: Callable[[], int]
) -> None:
    """Losses over four steps, so gradients too; stochastic depth draws the same; recomputed."""
    monkeypatch.setattr(assembly, "COMPILE_BACKEND", "aot_eager")
    model = {"vision": {"drop_path_rate": 0.3}}
    found = []
    for compiled in (True, False):
        stepper, method = stepper_of(
            tiny,
            "maskclip",
            compile=compiled,
            accumulation_steps=2,
            grad_checkpointing=compiled,
            model=model,
        )
        found.append(steps_of(stepper, method, graphs, accumulation=2)[0])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=2e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's CPU backend needs g++")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", ["clip", "maskclip"])
def test_prepare__compiled_by_inductor(
    tiny: ModuleType, graphs: Callable[[], int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """torch's own backend: losses of two steps, so gradients and weights of the first too."""
    monkeypatch.setattr(assembly, "COMPILE_BACKEND", "inductor")
    found = []
    for compiled in (True, False):
        stepper, method = stepper_of(tiny, name, compile=compiled)
        found.append(steps_of(stepper, method, graphs, accumulation=1, num_steps=2)[0])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own
@pytest.mark.parametrize(("name", "accumulation"), [("maskclip", 2), ("slip", 1)])
def test_compile_blocks__not_compiled_again(
    tiny: ModuleType, graphs: Callable[[], int], name: str, accumulation: int
) -> None:
    """After the first step nothing is, with captions of any length; no variant is left out.

    Blocks of trunk, text tower and decoders; a copy of the model is not compiled.
    """
    recipe = tiny.tiny_recipe(name, accumulation_steps=accumulation)
    torch.manual_seed(0)
    method = build_method(name, recipe.method_fields(), recipe.model, tokenizer_of(recipe))
    compile_blocks(method)
    stepper = tiny.tiny_stepper(recipe, method)
    _, counts = steps_of(stepper, method, graphs, accumulation=accumulation)
    assert counts[0] > 1
    assert counts == [counts[0]] * 4
    for block in (*method.model.visual.trunk.blocks, *method.model.text.transformer.resblocks):
        assert block._compiled_call_impl is not None
    assert all(
        module._compiled_call_impl is None for module in copy.deepcopy(method.model).modules()
    )
