"""Masked language modelling: words of a caption are hidden, a decoder names them (paper, Sec. 3.4).

"BERT-style", on the text alone: the decoder does not see the image. T captions, K words of all of
them, C masked words, W width of the text tower.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from maskclip_bench import distributed
from maskclip_bench.config import Declaration
from maskclip_bench.data.batch import Draw
from maskclip_bench.modeling.decoders import TextDecoder
from maskclip_bench.modeling.losses import mean_over_captions
from maskclip_bench.modeling.masking import choose_words
from maskclip_bench.modeling.model import TextConfig
from maskclip_bench.modeling.packing import ChosenWords, PackedLayout, PackedText

WORD_LOSS_SUMS, WORD_COUNTS = "word_loss_sums", "word_counts"
"""Names among the embeddings: of each caption, the sum of its words' losses, and their number."""


class MaskedLanguageConfig(Declaration):
    """Fields of every method that models language."""

    text_mask_ratio: float = Field(default=0.2, gt=0, lt=1)
    """Share of the words masked (paper, Sec. 4.1: 0.2)."""
    text_replacement: Literal["bert", "mask"] = "bert"
    """What a masked word becomes: BERT's 80 % mask, 10 % another word, 10 % itself; or always the
    mask. Unknown beyond "BERT-style"."""
    text_decoder_depth: int = Field(default=4, ge=0)
    """Blocks of the text decoder (paper: 4; T6d also 0)."""
    vocabulary_head: Literal["tied", "own"] = "tied"
    """Whether words are named by the token embedding (BERT) or by a matrix of its own; unknown."""
    mlm_average: Literal["words", "captions"] = "words"
    """What the loss is the mean of: all masked words of the global batch (BERT), or captions, each
    the mean over its own masked words, so that a word of a short caption counts more. Unknown."""


class MaskedLanguage(nn.Module):
    """The mask token, the decoder, and what names the words.

    Args:
        text: Sizes of the text tower.
        config: What is masked, and how it is decoded.
    """

    def __init__(self, text: TextConfig, config: MaskedLanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_token = nn.Parameter(torch.zeros(text.width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = TextDecoder(
            width=text.width, depth=config.text_decoder_depth, num_heads=text.num_heads
        )
        self.vocabulary_bias = nn.Parameter(torch.zeros(text.vocab_size))
        self.vocabulary: nn.Parameter | None = None
        if config.vocabulary_head == "own":
            self.vocabulary = nn.Parameter(torch.empty(text.vocab_size, text.width))
            nn.init.normal_(self.vocabulary, std=0.02)

    def choose(self, layout: PackedLayout, draw: Draw) -> ChosenWords:
        """Draw the words to mask, and what they become; never the start or the end token.

        Args:
            layout: Of the captions, on the CPU.
            draw: The captions, and what to draw from.
        """
        chosen = choose_words(draw.captions, self.config.text_mask_ratio, draw.generator)  # [T, L]
        places = layout.pack(chosen).nonzero().squeeze(1)  # [C], among the K words
        if self.config.text_replacement == "mask":
            return ChosenWords(places)
        numbers = torch.rand(2, *draw.captions.shape, generator=draw.generator).flatten(1)
        fate, other = numbers.index_select(1, layout.slots.index_select(0, places))
        # Any word but start and end, which are the two largest ids.
        num_others = self.vocabulary_bias.shape[0] - 2
        return ChosenWords(places, fate, (other * num_others).long())

    def word_losses(self, hidden: Tensor, chosen: ChosenWords, text: PackedText) -> Tensor:
        """Cross-entropy of each masked word, [C], in float32.

        Args:
            hidden: States of the text tower on the masked captions, [K, W].
            chosen: What was masked.
            text: The captions as they are.
        """
        decoded = self.decoder(hidden, text.layout).index_select(0, chosen.places)  # [C, W]
        own = self.vocabulary
        vocabulary = text.tower.token_embedding.weight if own is None else own
        logits = F.linear(decoded, vocabulary, self.vocabulary_bias)  # [C, vocabulary]
        words = text.words.index_select(0, chosen.places)
        return F.cross_entropy(logits.float(), words, reduction="none")

    def loss(
        self, hidden: Tensor, chosen: ChosenWords, text: PackedText
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The loss, or what it is made of when all samples of the global batch are known.

        Args:
            hidden: States of the text tower on the masked captions, [K, W].
            chosen: What was masked.
            text: The captions as they are.

        Returns:
            The mean over captions and nothing; or None and, of each caption, the sum of its words'
            losses and their number, each [T], for `mean_over_words`.
        """
        losses, captions = self.word_losses(hidden, chosen, text), text.caption_of(chosen.places)
        if self.config.mlm_average == "captions":
            return mean_over_captions(losses, captions, num_captions=text.layout.num_texts), {}
        sums = losses.new_zeros(text.layout.num_texts).index_add(0, captions, losses)
        counts = torch.zeros_like(sums).index_add_(0, captions, torch.ones_like(losses))
        return None, {WORD_LOSS_SUMS: sums, WORD_COUNTS: counts.detach()}

    def before_loss(self, chosen: ChosenWords, text: PackedText) -> dict[str, Tensor]:
        """What `loss` gives for `mean_over_words`, as far as it is known without a forward pass.

        Args:
            chosen: What will be masked.
            text: The captions.

        Returns:
            Sums of losses, all 0, and the number of words, each [T]; nothing where `loss` gives
            nothing.
        """
        if self.config.mlm_average == "captions":
            return {}
        captions = text.caption_of(chosen.places)
        sums = torch.zeros(text.layout.num_texts, device=captions.device)
        ones = torch.ones(len(captions), device=captions.device)
        return {WORD_LOSS_SUMS: sums, WORD_COUNTS: sums.index_add(0, captions, ones)}


def mean_over_words(embeddings: dict[str, Tensor]) -> Tensor:
    """Mean over the masked words of the global batch, from what `MaskedLanguage.loss` gave."""
    count = distributed.all_reduce_mean(embeddings[WORD_COUNTS].detach().sum())
    return embeddings[WORD_LOSS_SUMS].sum() / count.clamp(min=1)
