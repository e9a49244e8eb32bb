from __future__ import annotations

from types import ModuleType

import pytest
import torch

from maskclip_bench.config import merge, validate
from maskclip_bench.errors import ConfigError
from maskclip_bench.pretrain.assembly import prepare, tokenizer_of
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.recipe import Recipe


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
