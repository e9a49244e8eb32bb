"""Texts that begin alike go through a causal text tower once as far as they are alike.

In a causal tower a word's state depends on the words before it only. The prompts of a zero-shot
classifier are templates times class names: "a photo of a" is the same in a thousand of them. Here
each distinct beginning is computed once, wherever texts share it; attention alone lays the texts
out as [T, L, W], each with the states of its own beginnings (`modeling.blocks.packed_block`).

T texts, L tokens of the longest, K distinct beginnings of all texts, W width of the text tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskclip_bench.modeling.blocks import packed_block
from maskclip_bench.modeling.packing import TextLayout, ends_and_words


@dataclass(frozen=True)
class SharedPrefixes(TextLayout):
    """The distinct beginnings of texts [T, L], and where each text has them.

    A beginning's slot and position are those of its last word, in one of the texts that have it.

    Attributes:
        nodes: Int64 [T * L], the beginning that ends at each place; 0 behind a text's end.
    """

    nodes: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> SharedPrefixes:
        """Those of tokens, int64 [T, L]; a text ends at its largest token id.

        Example:
            >>> SharedPrefixes.of(torch.tensor([[7, 1, 9], [7, 2, 9], [7, 1, 9]])).nodes.tolist()
            [0, 1, 3, 0, 2, 4, 0, 1, 3]
        """
        num_texts, length = tokens.shape
        end, is_word = ends_and_words(tokens)
        nodes = torch.zeros_like(tokens)  # [T, L]
        before = torch.zeros_like(end)  # the beginning that each text has so far
        num_words = int(tokens.max()) + 1
        slots = []
        num_nodes = 0
        for position in range(length):
            texts = is_word[:, position].nonzero()[:, 0]
            keys = before[texts] * num_words + tokens[texts, position]
            distinct, index = keys.unique(return_inverse=True)
            first = index.new_full((len(distinct),), num_texts)
            first.scatter_reduce_(0, index, texts, "amin")
            slots.append(first * length + position)
            before[texts] = nodes[texts, position] = num_nodes + index
            num_nodes += len(distinct)
        all_slots = torch.cat(slots)
        return cls(
            slots=all_slots,
            positions=all_slots % length,
            nodes=nodes.flatten(),
            ends=nodes.gather(1, end.unsqueeze(1)).squeeze(1),
            is_word=is_word,
        )

    def pad(self, packed: Tensor) -> Tensor:
        """[K, W] -> [T, L, W]; what is behind a text's end has no meaning."""
        return packed.index_select(0, self.nodes).view(self.num_texts, self.length, -1)


def states_at_end(tower: Any, tokens: Tensor) -> Tensor:
    """States of the texts' end tokens after the final norm, [T, W].

    Args:
        tower: An open_clip `TextTransformer` (or the model that is its own tower), causal, of
            plain `ResidualAttentionBlock`s.
        tokens: Int64 [T, L], on the CPU (what is alike is found there, without waiting for a
            device); a text ends at its largest token id.
    """
    tokens = tokens[:, : int(tokens.argmax(dim=1).max()) + 1].long()
    layout = SharedPrefixes.of(tokens)
    device = tower.positional_embedding.device
    words, layout = layout.pack(tokens).to(device), layout.to(device)
    hidden = tower.token_embedding(words)  # [K, W]
    hidden = hidden + tower.positional_embedding.index_select(0, layout.positions)
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        hidden = packed_block(block, hidden, layout)
    states: Tensor = tower.ln_final(packed_block(last, hidden, layout, only_ends=True))
    return states
