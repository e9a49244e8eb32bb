"""Build the demo tokenizer's merges file from the words of the demo world.

    python scripts/build_demo_tokenizer.py [--scenes 5000]

Words come from the names, plurals, groups and keywords of the demo's atlas, from the captions of
many pretraining scenes, and from the prompt templates the demo is evaluated with. The result is
the part of CLIP's merges that these words need, so each splits as in CLIP, most into one token.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskclip_bench.data.demo.atlas import load_atlas
from maskclip_bench.data.demo.layouts import pretrain_scene
from maskclip_bench.data.tokenizer import (
    DEMO_MERGES,
    TokenizerConfig,
    load_tokenizer,
    merges_for,
    write_merges,
)

ATLAS_JSON = DEMO_MERGES.parent.parent / "demo" / "art" / "atlas.json"

SKIPPED_KEYS = {"sprites", "vendors", "id", "wnid", "format"}
"""Keys of the atlas whose values are no words of captions."""

TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of a {}.",
)
"""The seven templates CLIP's authors found enough for ImageNet, and the plain one."""

GROUNDS = """
    sky, night sky, grass, sand, water, snow, brick wall, gravel, wooden floor, floor, ground
    one two three four five six seven eight
"""
"""Names of grounds and numbers, which class names use and captions might not."""


def words_in(value: Any) -> Iterator[str]:
    """All texts inside a JSON value, except below `SKIPPED_KEYS`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from words_in(entry)
    elif isinstance(value, dict):
        for key, entry in value.items():
            if key not in SKIPPED_KEYS:
                yield from words_in(entry)


def caption_words(num_scenes: int, *, seed: int) -> set[str]:
    """All words of the captions of `num_scenes` pretraining scenes."""
    atlas = load_atlas()
    words: set[str] = set()
    for index in range(num_scenes):
        for caption in pretrain_scene(atlas, seed, index)[1]:
            words.update(caption.split())
    return words


def main() -> None:
    """Write the merges file and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DEMO_MERGES)
    arguments = parser.parse_args()

    texts = [*TEMPLATES, GROUNDS, *words_in(json.loads(ATLAS_JSON.read_text(encoding="utf-8")))]
    texts += sorted(caption_words(arguments.scenes, seed=arguments.seed))
    merges = merges_for(texts)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_merges(arguments.output, merges)
    print(f"{len(merges)} merges -> {arguments.output}")

    if arguments.output == DEMO_MERGES:
        tokenizer = load_tokenizer(TokenizerConfig(kind="demo"))
        words = {word for text in texts for word in tokenizer.pat.findall(text.lower())}
        lengths = [len(tokenizer.encode(word)) for word in words]
        print(f"{len(words)} words, {lengths.count(1)} of them one token, {lengths.count(2)} two")
        print(f"vocabulary of {tokenizer.vocab_size}")


if __name__ == "__main__":
    main()
