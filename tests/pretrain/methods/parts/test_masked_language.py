"""Masked words: what they become, and the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_methods import MODEL, VOCABULARY, batch

from maskclip_bench.data.batch import Batch, Draw
from maskclip_bench.modeling import build_model
from maskclip_bench.modeling.packing import PackedText
from maskclip_bench.pretrain.methods.parts.masked_language import (
    MaskedLanguage,
    MaskedLanguageConfig,
    mean_over_words,
)


def drawing(whole: Batch) -> Draw:
    return Draw(len(whole.images), whole.tokens, whole.generator)


def make(**changes: Any) -> tuple[MaskedLanguage, PackedText, Any]:
    torch.manual_seed(0)
    model = build_model(MODEL)
    config = MaskedLanguageConfig(text_decoder_depth=1, **changes)
    whole = batch(400)
    return MaskedLanguage(MODEL.text, config), PackedText(model.text, whole.tokens), whole


def test_masked_language__bert_replacement() -> None:
    """Of the chosen words about 80 % become the mask, 10 % another word, 10 % stay."""
    language, text, whole = make(text_mask_ratio=0.9)
    plain = text.plain()
    chosen = language.choose(text.layout, drawing(whole))
    masked = text.masked(chosen, language.mask_token)
    torch.testing.assert_close(text.plain(), plain)
    same = (masked == plain).all(1)
    others = torch.ones(len(plain), dtype=torch.bool)
    others[chosen.places] = False
    assert same[others].all()
    positions = text.tower.positional_embedding[text.layout.positions]
    tokens = (masked - positions)[chosen.places]
    is_mask = torch.isclose(tokens, language.mask_token, atol=1e-5).all(1).float()
    assert is_mask.mean() == pytest.approx(0.8, abs=0.03)
    assert same[chosen.places].float().mean() == pytest.approx(0.1, abs=0.03)
    nearest = torch.cdist(tokens[is_mask == 0], text.tower.token_embedding.weight).argmin(1)
    assert nearest.max() < VOCABULARY - 2  # never start or end


def test_masked_language__always_the_mask() -> None:
    language, text, whole = make(text_replacement="mask")
    chosen = language.choose(text.layout, drawing(whole))
    assert chosen.fate is None
    masked = text.masked(chosen, language.mask_token)
    positions = text.tower.positional_embedding[text.layout.positions]
    tokens = (masked - positions)[chosen.places]
    torch.testing.assert_close(tokens, language.mask_token.expand_as(tokens))


def test_masked_language__share_of_the_words() -> None:
    language, text, whole = make(text_mask_ratio=0.5)
    counts = torch.bincount(
        text.caption_of(language.choose(text.layout, drawing(whole)).places), minlength=400
    )
    words = (text.layout.is_word.sum(1) - 2).float()
    assert counts.tolist() == (words * 0.5).round().clamp(min=1).tolist()


@pytest.mark.parametrize("average", ["words", "captions"])
@pytest.mark.parametrize("head", ["tied", "own"])
def test_masked_language__loss(head: str, average: str) -> None:
    language, text, whole = make(vocabulary_head=head, mlm_average=average)
    chosen = language.choose(text.layout, drawing(whole))
    hidden = torch.randn(len(text.words), 32, generator=torch.Generator().manual_seed(1))
    decoded = language.decoder(hidden, text.layout)[chosen.places]
    vocabulary = text.tower.token_embedding.weight if head == "tied" else language.vocabulary
    logits = decoded @ vocabulary.T + language.vocabulary_bias
    losses = F.cross_entropy(logits, text.words[chosen.places], reduction="none")
    torch.testing.assert_close(language.word_losses(hidden, chosen, text), losses)
    loss, parts = language.loss(hidden, chosen, text)
    counts = torch.bincount(text.caption_of(chosen.places))
    if average == "words":
        assert loss is None
        assert torch.equal(parts["word_counts"], counts.float())
        assert not parts["word_counts"].requires_grad
        torch.testing.assert_close(mean_over_words(parts), losses.mean())
    else:
        assert parts == {}
        means = [part.mean() for part in losses.split(counts.tolist())]
        torch.testing.assert_close(loss, torch.stack(means).mean())
