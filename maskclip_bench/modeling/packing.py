"""Captions without padding: packed words, and what a text tower makes of them.

A caption's padding costs as much as its words. Here the words of all captions are kept in one row,
and run through the tower's blocks as that; attention alone lays them out as [T, L, W]
(`modeling.blocks.PackedCausalBlock`). Attention is causal: what follows a caption's end never
reaches it, so leaving it out is exact (tests, 1e-5).

T texts, L tokens of the longest, K words of all texts (start and end tokens included), W width of
the text tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

L = TypeVar("L", bound="TextLayout")


@dataclass(frozen=True)
class TextLayout:
    """Which words of padded texts [T, L] are kept in one row, [K].

    Attributes:
        slots: Int64 [K], each one's place in the flattened [T * L].
        positions: Int64 [K], its place in its text.
        ends: Int64 [T], the place in the row of each text's end token.
        is_word: Bool [T, L], True from the start to the end token.
    """

    slots: Tensor
    positions: Tensor
    ends: Tensor
    is_word: Tensor

    @property
    def num_texts(self) -> int:
        """T."""
        return self.is_word.shape[0]

    @property
    def length(self) -> int:
        """L."""
        return self.is_word.shape[1]

    def to(self: L, device: torch.device) -> L:
        """The same on another device."""
        if self.slots.device == device:
            return self
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items()}
        return type(self)(**moved)

    def pack(self, padded: Tensor) -> Tensor:
        """[T, L, ...] -> [K, ...]."""
        return padded.flatten(0, 1).index_select(0, self.slots)


def ends_and_words(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Of texts, int64 [T, L]: where each ends (at its largest token id) [T], its words [T, L]."""
    end = tokens.argmax(dim=1)
    return end, torch.arange(tokens.shape[1], device=tokens.device) <= end.unsqueeze(1)


@dataclass(frozen=True)
class PackedLayout(TextLayout):
    """Where each word of padded captions [T, L] is when packed without padding, [K]."""

    @classmethod
    def of(cls, tokens: Tensor) -> PackedLayout:
        """The layout of captions, int64 [T, L]; a caption ends at its largest token id."""
        end, is_word = ends_and_words(tokens)
        slots = is_word.flatten().nonzero().squeeze(1)
        ends = (end + 1).cumsum(0) - 1
        return cls(slots, slots % tokens.shape[1], ends, is_word)

    def twice(self) -> PackedLayout:
        """The layout of the same captions followed by themselves, [2T, L]."""
        return PackedLayout(
            slots=torch.cat([self.slots, self.slots + self.num_texts * self.length]),
            positions=self.positions.repeat(2),
            ends=torch.cat([self.ends, self.ends + len(self.slots)]),
            is_word=self.is_word.repeat(2, 1),
        )

    def pad(self, packed: Tensor) -> Tensor:
        """[K, W] -> [T, L, W], with zeros as padding."""
        size = self.num_texts * self.length
        padded = packed.new_zeros(size, packed.shape[1]).index_copy(0, self.slots, packed)
        return padded.view(self.num_texts, self.length, -1)


@dataclass(frozen=True)
class ChosenWords:
    """Words to be masked, C of the K, and what they become.

    Attributes:
        places: Int64 [C], ascending places among the packed words.
        fate: Float [C] in [0, 1): below 0.8 the mask, below 0.9 another word, else the word itself
            (BERT). None: always the mask.
        others: Int64 [C], the other words; None without `fate`.
    """

    places: Tensor
    fate: Tensor | None = None
    others: Tensor | None = None


class PackedText:
    """Captions of a batch in a text tower of open_clip.

    Args:
        tower: An open_clip `TextTransformer` whose blocks are `PackedCausalBlock`s.
        tokens: Int64 [T, L], L up to the context length; a caption ends at its largest token id.
        layout: Theirs, on the same device. Found on the CPU beforehand it avoids a device
            synchronization; by default it is found here.
    """

    def __init__(self, tower: Any, tokens: Tensor, *, layout: PackedLayout | None = None) -> None:
        self.tower = tower
        self.layout = PackedLayout.of(tokens) if layout is None else layout
        self.words = self.layout.pack(tokens)  # [K]
        self._plain: Tensor | None = None

    def plain(self) -> Tensor:
        """Embeddings of the words as they are, with their positions, [K, W]."""
        if self._plain is None:
            self._plain = self.tower.token_embedding(self.words) + self._positions()
        return self._plain

    def masked(self, chosen: ChosenWords, mask_token: Tensor) -> Tensor:
        """Embeddings with the chosen words replaced, [K, W].

        One lookup gives `plain()` too: the gradient of each is as large as the table of words.

        Args:
            chosen: Which, and by what.
            mask_token: [W].
        """
        positions = self._positions()  # [K, W]
        own_positions = positions.index_select(0, chosen.places)  # [C, W]
        masked = own_positions + mask_token
        if chosen.fate is None or chosen.others is None:
            plain = self.plain()
        else:
            embedded = self.tower.token_embedding(torch.cat([self.words, chosen.others]))
            plain = self._plain = embedded[: len(self.words)] + positions
            other = embedded[len(self.words) :] + own_positions
            own = plain.index_select(0, chosen.places)
            fate = chosen.fate.unsqueeze(1)
            masked = torch.where(fate < 0.8, masked, torch.where(fate < 0.9, other, own))
        return plain.index_copy(0, chosen.places, masked.to(plain.dtype))

    def at_end(self) -> Tensor:
        """States of the plain captions' end tokens after the final norm, [T, W].

        The last block computes only these.
        """
        *blocks, last = self._blocks()
        hidden = self._run(blocks, self.plain())
        return self.tower.ln_final(self._run([last], hidden, only_ends=True))

    def everywhere(self) -> Tensor:
        """States of all words of the plain captions after the final norm, [K, W]."""
        return self.tower.ln_final(self._run(self._blocks(), self.plain()))

    def at_end_and_everywhere(self, masked: Tensor) -> tuple[Tensor, Tensor]:
        """`at_end` of the plain captions, and `everywhere` of the masked ones, in one pass.

        Args:
            masked: What `masked` gave, [K, W].

        Returns:
            [T, W] and [K, W].
        """
        *blocks, last = self._blocks()
        both = self._run(blocks, torch.cat([self.plain(), masked]), self.layout.twice())
        plain, masked = both.tensor_split(2)
        eot_states = self._run([last], plain, only_ends=True)
        hidden = self._run([last], masked)
        return self.tower.ln_final(eot_states), self.tower.ln_final(hidden)

    def caption_of(self, places: Tensor) -> Tensor:
        """Which caption packed words belong to, int64 [C] -> [C]."""
        return self.layout.slots.index_select(0, places) // self.layout.length

    def _positions(self) -> Tensor:
        return self.tower.positional_embedding.index_select(0, self.layout.positions)

    def _blocks(self) -> list[nn.Module]:
        return list(self.tower.transformer.resblocks)

    def _run(
        self,
        blocks: Sequence[nn.Module],
        hidden: Tensor,
        layout: PackedLayout | None = None,
        *,
        only_ends: bool = False,
    ) -> Tensor:
        """Packed states [K, W] through some blocks; recomputed in the backward pass if set."""
        layout = layout or self.layout
        recompute = self.tower.transformer.grad_checkpointing and self.tower.training
        for block in blocks:
            if recompute:
                hidden = checkpoint(
                    block, hidden, use_reentrant=False, layout=layout, only_ends=only_ends
                )
            else:
                hidden = block(hidden, layout=layout, only_ends=only_ends)
        return hidden
