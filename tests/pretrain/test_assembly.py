from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from maskclip_bench.config import merge, validate
from maskclip_bench.data.batch import RawBatch
from maskclip_bench.errors import ConfigError
from maskclip_bench.pretrain import assembly
from maskclip_bench.pretrain.assembly import prepare, tokenizer_of
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.pretrain.run_length import RunLength
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


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own
@pytest.mark.parametrize(("name", "accumulation"), [("maskclip", 2), ("slip", 1)])
def test_prepare__compiled_blocks_are_not_compiled_again(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, accumulation: int
) -> None:
    """After two steps nothing is, with captions of any length, and no variant is left out."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(assembly, "COMPILE_BACKEND", "eager")  # counts the same, and is quick
    recipe = tiny.tiny_recipe(name, compile=True, accumulation_steps=accumulation)
    torch.manual_seed(0)
    method = build_method(name, recipe.method_fields(), recipe.model, tokenizer_of(recipe))
    strategy, optimizer = prepare(recipe, method, torch.device("cpu"))
    stepper = Stepper(
        recipe,
        method,
        strategy=strategy,
        optimizer=optimizer,
        length=RunLength.of(recipe, batches_per_epoch=8),
        device=torch.device("cpu"),
    )

    def do(step: int) -> int:
        """Do a step -> graphs so far."""
        raws = [raw(method, length=4 + step + n, seed=n) for n in range(accumulation)]
        stepper(stepper.preparation(raws, step=step), stop=False)
        return int(counters["stats"]["unique_graphs"])

    graphs = [do(step) for step in range(4)]
    assert graphs[0] > 1
    assert graphs[1] == graphs[2] == graphs[3]
    assert not counters["graph_break"]
    torch._dynamo.reset()
