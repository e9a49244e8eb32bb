from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from maskclip_bench.data.batch import RawBatch
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.run_length import RunLength
from maskclip_bench.pretrain.step import Stepper, same_length
from maskclip_bench.training.optim import build_optimizer
from maskclip_bench.training.parallel import DDPStrategy


def raw(tiny: ModuleType, *, size: int = 4, length: int = 4, seed: int = 0) -> RawBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
    end = tiny.tiny_recipe().model.text.vocab_size - 1
    tokens = torch.randint(1, end - 1, (size, length), generator=generator)
    tokens[:, -1] = end
    return RawBatch(images, tokens, (), [f"{seed}/{number}" for number in range(size)])


def stepper(tiny: ModuleType, method: str = "maskclip", **changes: Any) -> tuple[Stepper, Any]:
    recipe = tiny.tiny_recipe(method, **changes)
    torch.manual_seed(0)
    built = build_method(method, recipe.method_fields(), recipe.model)
    optimizer = build_optimizer(
        built, lr=0.1, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-8, no_weight_decay=set()
    )
    made = Stepper(
        recipe,
        built,
        strategy=DDPStrategy(
            built, device=torch.device("cpu"), accumulates=recipe.accumulation_steps > 1
        ),
        optimizer=optimizer,
        length=RunLength.of(recipe, batches_per_epoch=4),
        device=torch.device("cpu"),
    )
    return made, built


def state(method: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def changed(before: dict[str, Tensor], method: Any) -> list[str]:
    return [name for name, value in method.state_dict().items() if not value.equal(before[name])]


def test_step__updates_and_reports(tiny: ModuleType) -> None:
    step, method = stepper(tiny)
    before = state(method)
    result = step([raw(tiny)], step=2, stop=False)
    assert changed(before, method)
    assert result.bad == ""
    assert not result.stop
    assert result.terms["loss"] == pytest.approx(
        sum(value for name, value in result.terms.items() if name != "loss")
    )
    assert result.values["lr"] == pytest.approx(1e-3)
    assert all(parameter.grad is None for parameter in method.parameters())


def test_step__is_a_function_of_its_number(tiny: ModuleType) -> None:
    """Masks are drawn from (seed, step), whatever was drawn before."""
    losses = []
    for number in (3, 3, 4):
        step, _ = stepper(tiny)
        torch.rand(number)
        losses.append(step([raw(tiny)], step=number, stop=False).terms["distillation_loss"])
    assert losses[0] == losses[1] != losses[2]


def test_step__asked_to_stop(tiny: ModuleType) -> None:
    step, _ = stepper(tiny, "clip")
    assert step([raw(tiny)], step=0, stop=True).stop


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_step__not_finite_changes_nothing(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, accumulation: int, where: str
) -> None:
    """Neither weights, nor the teacher, nor the quantizer's centre, nor AdamW's state."""
    step, method = stepper(tiny, accumulation_steps=accumulation)
    raws = [raw(tiny, seed=number) for number in range(accumulation)]
    before = state(method)
    contrast = method.contrast

    def broken(embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = contrast(embeddings)
        if where == "loss":
            return {**terms, "contrastive_loss": terms["contrastive_loss"] * math.nan}
        terms["contrastive_loss"].register_hook(lambda gradient: gradient * math.inf)
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(method, "contrast", broken)
        result = step(raws, step=0, stop=False)
    expected = "contrastive_loss is" if where == "loss" else "the gradient is"
    assert result.bad == expected
    assert changed(before, method) == []
    assert (step.nonfinite.total, step.nonfinite.in_row) == (1, 1)
    assert step.nonfinite.gradients
    assert step([raws[0]] * accumulation, step=1, stop=False).bad == ""
    assert (step.nonfinite.total, step.nonfinite.in_row) == (1, 0)


@pytest.mark.parametrize(
    ("poisoned", "first"),
    [
        ("vision_decoder.blocks.0.mlp.fc1.weight", "vision_decoder.blocks.0.mlp.fc1"),
        ("model.visual.trunk.blocks.1.norm1.bias", "model.visual.trunk.blocks.1.norm1"),
    ],
)
def test_describe__where_it_began(tiny: ModuleType, poisoned: str, first: str) -> None:
    """Parts of the distillation and MLM losses have no embedding that would show it."""
    step, method = stepper(tiny)
    with torch.no_grad():
        method.get_parameter(poisoned).fill_(math.nan)
    text = step.describe([raw(tiny), raw(tiny, length=7, seed=1)], step=0)
    assert text.startswith("images -")
    assert "logit_scale 2.6593..2.6593" in text
    assert f"Weights not finite: {poisoned}." in text
    assert f"The first output that is not finite is that of {first}." in text


def test_same_length(tiny: ModuleType) -> None:
    short, long = same_length([raw(tiny, length=3), raw(tiny, length=6, seed=1)])
    assert short.tokens.shape == long.tokens.shape == (4, 6)
    assert short.tokens[:, 3:].eq(0).all()
    assert short.keys == ["0/0", "0/1", "0/2", "0/3"]
