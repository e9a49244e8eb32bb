"""Captions without padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from torch import Tensor

from maskclip_bench.modeling.packing import ChosenWords, PackedLayout, PackedText


def full_context(captions: Tensor, model: CustomTextCLIP) -> Tensor:
    return F.pad(captions, (0, model.text.context_length - captions.shape[1]))


def test_packed_layout(captions: Tensor) -> None:
    layout = PackedLayout.of(captions)
    assert layout.is_word.sum(1).tolist() == [5, 9, 3]
    packed = layout.pack(captions)
    assert packed.tolist() == [*captions[0, :5], *captions[1], *captions[2, :3]]
    assert layout.ends.tolist() == [4, 13, 16]
    assert layout.positions.tolist() == [*range(5), *range(9), *range(3)]
    values = torch.arange(17.0).unsqueeze(1)
    torch.testing.assert_close(layout.pack(layout.pad(values)), values)
    assert layout.to(captions.device) is layout
    twice = layout.twice()
    expected = PackedLayout.of(captions.repeat(2, 1))
    for name in ("slots", "positions", "ends", "is_word"):
        assert torch.equal(getattr(twice, name), getattr(expected, name)), name


def test_packed_layout__on_another_device(captions: Tensor) -> None:
    moved = PackedLayout.of(captions).to(torch.device("meta"))
    assert moved.slots.is_meta
    assert moved.is_word.shape == (3, 9)


def test_plain__is_the_towers_embedding(model: CustomTextCLIP, captions: Tensor) -> None:
    text = PackedText(model.text, captions)
    embedded, _ = model.text._embeds(full_context(captions, model))
    torch.testing.assert_close(text.plain(), text.layout.pack(embedded[:, :9]))
    assert text.plain() is text.plain()


def test_everywhere__equals_open_clip(model: CustomTextCLIP, captions: Tensor) -> None:
    tower = model.text
    embedded, mask = tower._embeds(full_context(captions, model))
    expected = tower.ln_final(tower.transformer(embedded, attn_mask=mask))[:, :9]
    text = PackedText(tower, captions)
    torch.testing.assert_close(text.everywhere(), text.layout.pack(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        text.at_end(), text.everywhere()[text.layout.ends], rtol=1e-5, atol=1e-5
    )


def test_at_end_and_everywhere__equals_two_passes(model: CustomTextCLIP, captions: Tensor) -> None:
    text = PackedText(model.text, captions)
    masked = text.plain().roll(1, 0)
    eot_states, hidden = text.at_end_and_everywhere(masked)
    torch.testing.assert_close(eot_states, text.at_end(), rtol=1e-5, atol=1e-5)
    other = PackedText(model.text, captions)
    other._plain = masked
    torch.testing.assert_close(hidden, other.everywhere(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bert", [True, False])
def test_masked__replaces_the_chosen(model: CustomTextCLIP, captions: Tensor, bert: bool) -> None:
    text = PackedText(model.text, captions)
    token = torch.full((32,), 7.0)
    places = torch.tensor([1, 2, 3])
    chosen = ChosenWords(places)
    if bert:  # the mask, another word, the word itself
        chosen = ChosenWords(places, torch.tensor([0.5, 0.85, 0.95]), torch.tensor([3, 4, 5]))
    masked = text.masked(chosen, token)
    expected = text.plain().clone()
    positions = model.text.positional_embedding[text.layout.positions]
    expected[1] = positions[1] + token
    if bert:
        expected[2] = positions[2] + model.text.token_embedding.weight[4]
    else:
        expected[2:4] = positions[2:4] + token
    torch.testing.assert_close(masked, expected)
    assert text.caption_of(torch.tensor([0, 4, 5, 13, 14])).tolist() == [0, 0, 1, 1, 2]


def test_layout__may_be_found_beforehand(model: CustomTextCLIP, captions: Tensor) -> None:
    layout = PackedLayout.of(captions.clone())
    text = PackedText(model.text, captions, layout=layout)
    assert text.layout is layout
    assert torch.equal(text.words, PackedText(model.text, captions).words)
