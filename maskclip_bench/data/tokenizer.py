"""Tokenizers: open_clip's byte-pair encoding, with CLIP's vocabulary or the demo world's small one.

The demo's merges file is the part of CLIP's that its words need (`scripts/build_demo_tokenizer.py`
makes it), so its tokenizer is still an open_clip `SimpleTokenizer`, and open_clip reads the file.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from pydantic import Field
from torch import Tensor

from maskclip_bench.config import Declaration
from maskclip_bench.errors import DataError

DEMO_MERGES = Path(__file__).resolve().parent / "tokenizers" / "demo_merges.txt.gz"

MAX_CACHED_WORDS = 300_000
"""Words whose tokens are kept; web captions hold millions of distinct ones."""

PAD_TOKEN_ID = 0
"""Fills the end of a row, as in open_clip (it is also the token of `!`; the EOT ends a caption)."""


class TokenizerConfig(Declaration):
    """The `tokenizer` part of a recipe."""

    kind: Literal["clip", "demo"] = "clip"
    """`clip`: 49,408 tokens. `demo`: the part of them that the demo world's words need."""

    context_length: Annotated[int, Field(ge=3)] = 77
    """Longest caption in tokens, with its start and end token."""


class CaptionTokenizer(SimpleTokenizer):
    """open_clip's `SimpleTokenizer`, faster on plain text, and able to trim a batch.

    Attributes:
        vocab_size: Number of tokens.
        context_length: Longest caption in tokens, with start and end.
        sot_token_id: Start of text.
        eot_token_id: End of text; the largest token id, so `argmax` over a row finds it.
    """

    def __init__(self, merges_file: Path, *, context_length: int) -> None:
        super().__init__(bpe_path=str(merges_file), context_length=context_length)
        self._tokens_of_word: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` without start and end; equals open_clip's, word by word cached."""
        if not text.isascii() or not text.isprintable() or "&" in text:
            text = self.clean_fn(text)  # repairs broken Unicode and HTML entities: slow
        else:
            text = text.lower()
        known = self._tokens_of_word
        tokens: list[int] = []
        for word in self.pat.findall(text):
            found = known.get(word)
            if found is None:
                if len(known) >= MAX_CACHED_WORDS:
                    known.clear()
                    self.cache = {token: token for token in self._special_tokens()}
                found = known[word] = self._encode_word(word)
            tokens.extend(found)
        return tokens

    def encode_caption(self, text: str) -> list[int]:
        """Start token, `text`, end token; a caption that is too long is cut but keeps its end."""
        tokens = [self.sot_token_id, *self.encode(text), self.eot_token_id]
        if len(tokens) > self.context_length:
            tokens = [*tokens[: self.context_length - 1], self.eot_token_id]
        return tokens

    def encode_batch(self, texts: Sequence[str]) -> Tensor:
        """Captions -> int64 [B, L], L the longest of them, padded with `PAD_TOKEN_ID`."""
        return pad([self.encode_caption(text) for text in texts])

    def _encode_word(self, word: str) -> tuple[int, ...]:
        symbols = "".join(self.byte_encoder[byte] for byte in word.encode("utf-8"))
        return tuple(self.encoder[token] for token in self.bpe(symbols).split(" "))

    def _special_tokens(self) -> list[str]:
        return [self.decoder[token] for token in self.all_special_ids]


def load_tokenizer(config: TokenizerConfig) -> CaptionTokenizer:
    """The tokenizer of a recipe.

    Raises:
        DataError: The merges file is missing from the installation.
    """
    file = merges_file(config)
    if not file.is_file():
        raise DataError(
            f"The merges file {file} is missing. Install the package again, or, in a checkout, "
            "run scripts/build_demo_tokenizer.py."
        )
    return CaptionTokenizer(file, context_length=config.context_length)


def merges_file(config: TokenizerConfig) -> Path:
    """The file of byte-pair merges a tokenizer is made from (open_clip's `bpe_path`)."""
    return DEMO_MERGES if config.kind == "demo" else Path(default_bpe())


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of token ids -> int64 [B, L], L the longest row, padded on the right."""
    length = max(map(len, rows))
    padded = [[*row, *[PAD_TOKEN_ID] * (length - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64)


def merges_for(texts: Iterable[str]) -> list[str]:
    """CLIP's merges that encoding `texts` uses, in CLIP's order.

    With only these, a text in `texts` splits into the very pieces CLIP splits it into.
    """
    full = CaptionTokenizer(Path(default_bpe()), context_length=77)
    ranks = full.bpe_ranks
    used: set[tuple[str, str]] = set()
    for text in texts:
        for word in full.pat.findall(full.clean_fn(text)):
            symbols = [full.byte_encoder[byte] for byte in word.encode("utf-8")]
            used.update(_merges_of(symbols, ranks))
    return [" ".join(merge) for merge in sorted(used, key=lambda merge: ranks[merge])]


def write_merges(path: Path, merges: Sequence[str]) -> None:
    """Write a merges file as `SimpleTokenizer` reads it; the same merges give the same bytes."""
    text = "\n".join(["#version: 0.2", *merges])
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write(text.encode("utf-8"))


def _merges_of(symbols: list[str], ranks: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    """The merges byte-pair encoding applies to one word."""
    pieces = [*symbols[:-1], symbols[-1] + "</w>"]
    used: set[tuple[str, str]] = set()
    while len(pieces) > 1:
        best = min(itertools.pairwise(pieces), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        used.add(best)
        merged: list[str] = []
        for piece in pieces:
            if merged and (merged[-1], piece) == best:  # left to right: "a a a" -> "aa a"
                merged[-1] = merged[-1] + piece
            else:
                merged.append(piece)
        pieces = merged
    return used
