from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskclip_bench.data import tokenizer as tokenizer_module
from maskclip_bench.data.tokenizer import (
    DEMO_MERGES,
    CaptionTokenizer,
    TokenizerConfig,
    load_tokenizer,
    merges_file,
    merges_for,
    write_merges,
)
from maskclip_bench.errors import DataError

CLIP = load_tokenizer(TokenizerConfig(kind="clip"))
DEMO = load_tokenizer(TokenizerConfig(kind="demo", context_length=24))
OPEN_CLIP = open_clip.get_tokenizer("ViT-B-32")

TEXTS = [
    "A photo of the small panda.",
    "it's 3 o'clock &amp; the “quoted” schön naïve ﬁsh",
    "  double  spaces\tand\nlines ",
    "emoji 🐘 and ЮНИКОД, 中文",
    "&lt;b&gt; <start_of_text> x <end_of_text>",
    "",
    "word " * 100,
]


@pytest.mark.parametrize("text", TEXTS)
def test_clip__equals_open_clip(text: str) -> None:
    tokens = CLIP.encode_batch([text])
    theirs = OPEN_CLIP([text])
    assert torch.equal(tokens, theirs[:, : tokens.shape[1]])
    assert not theirs[:, tokens.shape[1] :].any()
    assert torch.equal(CLIP([text]), theirs)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.text(alphabet=st.characters(codec="ascii"), max_size=40))
def test_clip__equals_open_clip_on_any_text(text: str) -> None:
    assert CLIP.encode(text) == OPEN_CLIP.encode(text)


def test_too_long__keeps_the_end_token() -> None:
    tokens = DEMO.encode_caption("panda " * 50)
    assert len(tokens) == 24
    assert tokens[0] == DEMO.sot_token_id and tokens[-1] == DEMO.eot_token_id
    exact = DEMO.encode_caption("panda " * 22)
    assert len(exact) == 24 and exact == tokens


def test_batch__trimmed_and_padded() -> None:
    batch = DEMO.encode_batch(["a panda", "a panda on the grass"])
    assert batch.shape == (2, 7) and batch.dtype == torch.int64
    assert batch.argmax(dim=1).tolist() == [3, 6], "EOT is the largest id"
    assert batch[0, 4:].tolist() == [0, 0, 0]


def test_demo__small_and_splits_as_clip() -> None:
    assert 1000 < DEMO.vocab_size < 2000
    assert DEMO.eot_token_id == DEMO.vocab_size - 1
    for text in (
        "a pair of scissors",
        "two elephants in front of a brick wall",
        "itap of a panda.",
    ):
        ours = [DEMO.decoder[token] for token in DEMO.encode(text)]
        assert ours == [CLIP.decoder[token] for token in CLIP.encode(text)]


def test_demo__is_read_by_open_clip() -> None:
    theirs = open_clip.SimpleTokenizer(bpe_path=str(DEMO_MERGES), context_length=24)
    assert theirs.vocab_size == DEMO.vocab_size
    assert torch.equal(theirs(["a panda on sand"]), DEMO(["a panda on sand"]))


def test_unknown_words__still_have_tokens() -> None:
    assert DEMO.decode(DEMO.encode("zyxomma ßtrange")).strip() == "zyxomma ßtrange"


def test_merges__are_those_used(tmp_path: Path) -> None:
    merges = merges_for(["banana", "aaaa!!!"])
    write_merges(tmp_path / "m.gz", merges)
    first = (tmp_path / "m.gz").read_bytes()
    write_merges(tmp_path / "m.gz", merges)
    assert (tmp_path / "m.gz").read_bytes() == first
    small = CaptionTokenizer(tmp_path / "m.gz", context_length=8)
    assert small.vocab_size == 512 + len(merges) + 2
    for text in ("banana", "aaaa", "!!!"):
        assert [small.decoder[t] for t in small.encode(text)] == [
            CLIP.decoder[t] for t in CLIP.encode(text)
        ]


def test_word_cache__is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "MAX_CACHED_WORDS", 3)
    tokenizer = load_tokenizer(TokenizerConfig(kind="demo"))
    for text in TEXTS:
        assert tokenizer.encode(text) == DEMO.encode(text)
    assert len(tokenizer._tokens_of_word) <= 3


def test_missing_merges__says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tokenizer_module, "DEMO_MERGES", tmp_path / "gone.gz")
    assert merges_file(TokenizerConfig(kind="demo")) == tmp_path / "gone.gz"
    with pytest.raises(DataError, match=r"gone.gz is missing"):
        load_tokenizer(TokenizerConfig(kind="demo"))
