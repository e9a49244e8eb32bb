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
from maskclip_bench.pretrain.step import Stepper, StepResult, not_finite
from maskclip_bench.training.optim import build_optimizer
from maskclip_bench.training.parallel import DDPStrategy


def raw(tiny: ModuleType, *, size: int = 4, length: int = 4, seed: int = 0) -> RawBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
    end = tiny.tiny_recipe().model.text.vocab_size - 1
    tokens = torch.randint(1, end - 1, (size, length), generator=generator)
    tokens[:, -1] = end
    return RawBatch(images, tokens, (), [f"{seed}/{number}" for number in range(size)])


def stepper(
    tiny: ModuleType,
    method: str = "maskclip",
    *,
    decide_on_device: bool = False,
    **changes: Any,
) -> tuple[Stepper, Any]:
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
        decide_on_device=decide_on_device,
    )
    return made, built


def run(step: Stepper, raws: list[RawBatch], number: int, *, stop: bool = False) -> StepResult:
    """One step, and all that is known of it."""
    (result,) = [*step(step.preparation(raws, step=number), stop=stop), *step.finish()]
    return result


def state(method: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def changed(before: dict[str, Tensor], method: Any) -> list[str]:
    return [name for name, value in method.state_dict().items() if not value.equal(before[name])]


def test_step__updates_and_reports(tiny: ModuleType) -> None:
    step, method = stepper(tiny)
    before = state(method)
    result = run(step, [raw(tiny)], 2)
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
        losses.append(run(step, [raw(tiny)], number).terms["distillation_loss"])
    assert losses[0] == losses[1] != losses[2]


def test_step__warnings_come_after_the_warm_up(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate near 0 moves nothing, as is meant; 2 of 6 steps are warm-up."""
    step, method = stepper(tiny)
    seen: list[tuple[int, float]] = []

    def observe(values: Any, *, step: int, total_steps: int, lr_share: float) -> None:
        seen.append((step, lr_share))

    monkeypatch.setattr(method, "observe", observe)
    for number in range(6):
        run(step, [raw(tiny)], number)
    assert [number for number, _ in seen] == [3, 4, 5, 6]
    shares = [share for _, share in seen]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.5


def test_step__asked_to_stop(tiny: ModuleType) -> None:
    step, _ = stepper(tiny, "clip")
    assert run(step, [raw(tiny)], 0, stop=True).stop


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_step__not_finite_changes_nothing(
    tiny: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    accumulation: int,
    where: str,
    on_device: bool,
) -> None:
    """Neither weights, nor the teacher, nor the quantizer's centre, nor AdamW's state."""
    step, method = stepper(tiny, accumulation_steps=accumulation, decide_on_device=on_device)
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
        result = run(step, raws, 0)
    expected = "contrastive_loss is" if where == "loss" else "the gradient is"
    assert result.bad == expected
    assert changed(before, method) == []
    assert (step.nonfinite.total, step.nonfinite.in_row) == (1, 1)
    assert step.nonfinite.gradients
    states = step._optimizer.state.values()
    assert all(value.eq(0).all() for state in states for value in state.values())
    assert run(step, [raws[0]] * accumulation, 1).bad == ""
    assert (step.nonfinite.total, step.nonfinite.in_row) == (1, 0)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_step__decided_by_the_device_equals_decided_by_the_host(
    tiny: ModuleType, accumulation: int
) -> None:
    """The same losses, weights and values; told one step later."""
    raws = [[raw(tiny, seed=2 * n + part) for part in range(accumulation)] for n in range(4)]
    found = []
    for on_device in (False, True):
        step, method = stepper(
            tiny,
            accumulation_steps=accumulation,
            decide_on_device=on_device,
            optimizer={"clip_grad_norm": 0.5},
        )
        results, told = [], []
        for number, batches in enumerate(raws):
            results += step(step.preparation(batches, step=number), stop=False)
            told.append(len(results))
        results += step.finish()
        assert told == ([0, 1, 2, 3] if on_device else [1, 2, 3, 4])
        found.append((results, state(method)))
    (by_host, weights), (by_device, other_weights) = found
    for ours, theirs in zip(by_host, by_device, strict=True):
        assert ours.terms == pytest.approx(theirs.terms, abs=1e-5)
        assert ours.values == pytest.approx(theirs.values, rel=1e-4)
    for name, value in weights.items():
        if not name.endswith(("qkv.bias", "in_proj_bias")):  # keys' have rounding for a gradient
            torch.testing.assert_close(other_weights[name], value, atol=2e-6, rtol=1e-5, msg=name)


def test_not_finite() -> None:
    assert not_finite({"loss": math.nan, "a_loss": math.nan, "b_loss": 1.0}) == "a_loss is"
    assert not_finite({"a_loss": math.nan, "b_loss": math.inf}) == "a_loss and b_loss are"
    assert not_finite({"a_loss": 1.0}) == "the gradient is"


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
