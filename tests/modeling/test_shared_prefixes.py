"""Texts that begin alike: what is computed once, and that the states are open_clip's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from torch import Tensor

from maskclip_bench.backbones.encoders import OpenClipEncoder
from maskclip_bench.modeling.shared_prefixes import SharedPrefixes, states_at_end

START, END = 30, 31


def texts_of(*words: list[int], length: int = 12) -> Tensor:
    """Texts with a start and an end token, padded with 0, int64 [T, length]."""
    rows = [[START, *text, END] for text in words]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


PROMPTS = texts_of([5, 6, 7], [5, 6, 8, 9], [5, 6], [], [6, 5, 7], [5, 6, 7], [0, 0, 5])


def test_each_beginning_once() -> None:
    shared = SharedPrefixes.of(PROMPTS)
    beginnings = {
        tuple(row[: place + 1])
        for row, is_word in zip(PROMPTS.tolist(), shared.is_word.tolist(), strict=True)
        for place in range(sum(is_word))
    }
    assert len(shared.slots) == len(beginnings) == 18
    packed = shared.pack(PROMPTS)
    padded = shared.pad(packed.float().unsqueeze(1)).squeeze(2)
    assert torch.equal(padded[shared.is_word], PROMPTS[shared.is_word].float())
    assert shared.ends.tolist()[0] == shared.ends.tolist()[5]
    assert len(set(shared.ends.tolist())) == 6
    assert (packed[shared.ends] == END).all()
    assert torch.equal(shared.positions[shared.ends], PROMPTS.argmax(dim=1))


def test_on_another_device() -> None:
    moved = SharedPrefixes.of(PROMPTS).to(torch.device("meta"))
    assert moved.nodes.is_meta
    assert moved.is_word.shape == PROMPTS.shape


def test_a_text_alone_and_the_same_twice() -> None:
    alone = SharedPrefixes.of(texts_of([3, 4], length=4))
    assert alone.nodes.tolist() == [0, 1, 2, 3]
    twice = SharedPrefixes.of(texts_of([3, 4], [3, 4], length=4))
    assert twice.nodes.tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_states_at_end__equal_open_clip(model: CustomTextCLIP, dtype: torch.dtype) -> None:
    tower = model.text
    end = tower.vocab_size - 1
    tokens = torch.where(PROMPTS == END, end, PROMPTS)
    tokens = torch.where(tokens == START, end - 1, tokens)
    tokens = F.pad(tokens, (0, tower.context_length - tokens.shape[1]))
    with torch.no_grad():
        expected = model.encode_text(tokens)
        found = states_at_end(tower, tokens.to(dtype)) @ tower.text_projection
        one_by_one = torch.cat([states_at_end(tower, row[None]) for row in tokens])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one_by_one @ tower.text_projection, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_states_at_end__in_the_encoder_of_a_model_in_training(
    model: CustomTextCLIP, precision: str
) -> None:
    end = model.text.vocab_size - 1
    tokens = torch.where(PROMPTS == END, end, PROMPTS).clamp_max(end)
    tokens = F.pad(tokens, (0, model.text.context_length - tokens.shape[1]))
    encoder = OpenClipEncoder(model, lambda texts: tokens[: len(texts)])
    assert encoder._trimmable is model.text
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        found = encoder.encode_text(["x"] * len(tokens))
        expected = F.normalize(model.encode_text(tokens).float(), dim=-1)
        alone = encoder.encode_text(["x"])
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    torch.testing.assert_close(alone, expected[:1], rtol=0, atol=bound)
