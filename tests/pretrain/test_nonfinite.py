from __future__ import annotations

import contextlib
import math
from types import ModuleType
from typing import Any

import pytest
import torch

from maskclip_bench.data.batch import Batch
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.training.nonfinite import describe, shortened, value_range


@pytest.fixture
def method(tiny: ModuleType) -> Method:
    recipe = tiny.tiny_recipe("maskclip")
    torch.manual_seed(0)
    return build_method("maskclip", recipe.method.fields, recipe.model).train()


def batches(method: Any, *, value: float = 1.0) -> list[Batch]:
    end = method.model.text.vocab_size - 1
    tokens = torch.tensor([[end - 1, 5, 7, end], [end - 1, 9, 8, end]])
    return [
        Batch(torch.full((2, 3, 32, 32), value), tokens, (), torch.Generator().manual_seed(0)),
        Batch(torch.full((2, 3, 32, 32), -3.0), tokens, (), torch.Generator().manual_seed(1)),
    ]


def told(method: Any, **changes: float) -> str:
    return describe(method, batches(method, **changes), autocast=contextlib.nullcontext)


def test_describe__ranges_of_all_micro_batches(method: Any) -> None:
    text = told(method)
    assert "images -3..1, " in text
    assert f"tokens 5..{method.model.text.vocab_size - 1}, " in text
    assert "image_features -" in text
    assert "text_features -" in text
    assert "logit_scale 2.6593..2.6593." in text
    assert text.endswith("All weights are finite.")


@pytest.mark.parametrize(
    ("poisoned", "first"),
    [
        ("vision_decoder.blocks.0.mlp.fc1.weight", "vision_decoder.blocks.0.mlp.fc1"),
        ("text_decoder.norm.weight", "text_decoder.norm"),
        ("model.visual.trunk.blocks.1.norm1.bias", "model.visual.trunk.blocks.1.norm1"),
    ],
)
def test_describe__where_it_began(method: Any, poisoned: str, first: str) -> None:
    """Parts of the distillation and MLM losses have no embedding that would show it."""
    with torch.no_grad():
        method.get_parameter(poisoned).fill_(math.nan)
    text = told(method)
    assert f"Weights not finite: {poisoned}." in text
    assert f"The first output that is not finite is that of {first}." in text
    assert not any(module._forward_hooks for module in method.modules())


def test_describe__inputs_that_are_not_finite(method: Any) -> None:
    text = told(method, value=math.inf)
    assert "images -3..-3 (6144 of 12288 not finite)" in text
    assert "is that of model.visual.trunk.patch_embed.proj." in text


def test_describe__a_step_that_fails_again(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(batch: Batch) -> None:
        raise RuntimeError("out of memory\nwith details")

    monkeypatch.setattr(method, "encode", fail)
    text = told(method)
    assert text.startswith("images 1..1, tokens 5..")
    assert text.endswith("The step cannot be repeated: out of memory.")


def test_shortened() -> None:
    assert shortened(list("abc")) == "a, b, c"
    assert shortened(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_value_range__none_finite() -> None:
    assert value_range([torch.full((2,), math.nan)]) == "none finite (2 of 2 not finite)"
