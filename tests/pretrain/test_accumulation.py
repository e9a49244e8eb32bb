from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor

from maskclip_bench.data.batch import Batch
from maskclip_bench.data.tokenizer import load_tokenizer
from maskclip_bench.pretrain.accumulation import accumulated_backward
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.methods.base import Method

NUM_PARTS = 3
PART_SIZE = 4


def make_method(tiny: ModuleType, name: str) -> Method:
    recipe = tiny.tiny_recipe(name)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(recipe.tokenizer)
    return build_method(name, recipe.method.fields, recipe.model, tokenizer).train()


def make_batch(start: int, stop: int, method: Method) -> Batch:
    """Samples `start` to `stop` of one fixed set; captions of two lengths, padded."""
    generator = torch.Generator().manual_seed(1)
    total = NUM_PARTS * PART_SIZE
    images = torch.randn(total, 3, 32, 32, generator=generator)
    views = torch.randn(method.num_ssl_views, total, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, 300, (total, 10), generator=generator)
    end = method.model.text.vocab_size - 1
    tokens[:, 9] = end
    tokens[::2, 6] = end
    tokens[::2, 7:] = 0
    return Batch(
        images=images[start:stop],
        tokens=tokens[start:stop],
        ssl_views=tuple(view[start:stop] for view in views),
        generator=torch.Generator().manual_seed(2),
    )


def gradients(method: Method) -> dict[str, Tensor]:
    return {
        name: parameter.grad
        for name, parameter in method.named_parameters()
        if parameter.grad is not None
    }


def run_accumulated(method: Method) -> dict[str, Tensor]:
    parts = [
        make_batch(number * PART_SIZE, (number + 1) * PART_SIZE, method)
        for number in range(NUM_PARTS)
    ]
    states = [part.generator.get_state() for part in parts]

    def reseed(number: int) -> None:
        parts[number].generator.set_state(states[number])
        torch.manual_seed(number)

    return accumulated_backward(method, parts, reseed=reseed, autocast=contextlib.nullcontext)


def test_accumulated_backward__equals_one_batch(tiny: ModuleType) -> None:
    """CLIP draws nothing, so the parts must give the loss and every gradient of the whole."""
    method = make_method(tiny, "clip")
    plain = method(make_batch(0, NUM_PARTS * PART_SIZE, method))
    plain["loss"].backward()
    expected = gradients(method)
    method.zero_grad(set_to_none=True)
    found = run_accumulated(method)
    torch.testing.assert_close(found["loss"], plain["loss"].detach())
    assert found.keys() == plain.keys()
    assert gradients(method).keys() == expected.keys()
    for name, gradient in gradients(method).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["clip", "slip", "clip_mae", "maskclip"])
def test_embed__equals_the_embeddings_of_encode(tiny: ModuleType, name: str) -> None:
    """Also where blocks are left out at random: both draw the same."""
    method = make_method(tiny, name)
    for block in method.model.visual.trunk.blocks:
        block.drop_path1 = block.drop_path2 = DropPath(0.5)
    found = []
    for embeddings_of in (method.embed, lambda batch: method.encode(batch)[0]):
        torch.manual_seed(7)
        with torch.no_grad():
            found.append(embeddings_of(make_batch(0, PART_SIZE, method)))
    for key in method.linear_embeddings:
        assert not found[0].pop(key).any()
        found[1].pop(key)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["slip", "maskclip"])
def test_accumulated_backward__embeds_all_but_the_last_once(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The first pass has neither the last micro-batch, nor masks, masked words or a teacher."""
    method = make_method(tiny, name)
    calls: list[str] = []
    gradients = torch.is_grad_enabled

    def spy(owner: Any, function: str) -> None:
        plain = getattr(owner, function)

        def called(*arguments: Any, **options: Any) -> Any:
            calls.append(f"{function} {'with' if gradients() else 'without'} gradient")
            return plain(*arguments, **options)

        monkeypatch.setattr(owner, function, called)

    spy(method, "embed")
    spy(method, "encode")
    if name == "maskclip":
        spy(method, "distill")
        spy(method, "read")
    run_accumulated(method)
    once = ["encode with gradient"]
    if name == "maskclip":
        once += ["distill with gradient", "read with gradient"]
        assert calls == ["embed without gradient"] * 2 + once * NUM_PARTS
    else:  # its `embed` is all of `encode`
        first = ["embed without gradient", "encode without gradient"]
        assert calls == first * 2 + once * NUM_PARTS


@pytest.mark.parametrize("name", ["slip", "clip_mae", "maskclip"])
def test_accumulated_backward__equals_the_naive_sum(tiny: ModuleType, name: str) -> None:
    """Methods that draw, or normalize over the batch: against a graph kept for all the parts."""
    method = make_method(tiny, name)
    parts = [
        make_batch(number * PART_SIZE, (number + 1) * PART_SIZE, method)
        for number in range(NUM_PARTS)
    ]
    encoded = []
    for number, part in enumerate(parts):
        torch.manual_seed(number)
        encoded.append(method.encode(part))
    whole = {key: torch.cat([part[key] for part, _ in encoded]) for key in encoded[0][0]}
    loss = torch.stack(list(method.contrast(whole).values())).sum()
    for _, local in encoded:
        loss = loss + sum(local.values(), torch.zeros(())) / NUM_PARTS
    loss.backward()

    other = make_method(tiny, name)
    found = run_accumulated(other)
    torch.testing.assert_close(found["loss"], loss.detach())
    expected = gradients(method)
    assert gradients(other).keys() == expected.keys()
    for key, gradient in gradients(other).items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-6, rtol=1e-4, msg=key)
    for key, buffer in other.named_buffers():
        torch.testing.assert_close(buffer, method.get_buffer(key), msg=key)
