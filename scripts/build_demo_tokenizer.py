"""Build the demo tokenizer's merges file from the words of the demo world.

    python scripts/build_demo_tokenizer.py [--captions FILE ...]

Words come from every JSON file of `maskclip_bench/data/demo/` (names, plurals, groups, keywords,
sentence parts), from the seven CLIP prompt templates the demo is evaluated with, and from the
caption files named (one caption a line, or a Karpathy JSON). The result is the part of CLIP's
merges that these words need, so each splits as in CLIP, most into one token.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskclip_bench.data.tokenizer import (
    DEMO_MERGES,
    TokenizerConfig,
    load_tokenizer,
    merges_for,
    write_merges,
)

DEMO_FOLDER = DEMO_MERGES.parent.parent / "demo"

SKIPPED_KEYS = {"sprites", "vendors", "id", "wnid", "format", "sha256", "package", "file"}
"""Keys of the JSON files whose values are no words of captions."""

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

GRAMMAR = """
    a an the and with of in on at to by from under over above below beside behind before between
    near next front left right top bottom middle center far close together alone is are there
    one two three four five six seven eight several some many few pair group no nothing else
    big small large little tiny huge tall short wide photo picture image scene view drawing emoji
    standing lying sitting resting floating flying swimming hanging placed seen shown facing
    sky night day blue dark bright cloudy clear starry grass meadow lawn field sand beach desert
    water sea lake pond river snow snowy brick wall gravel ground floor road path stones pebbles
    red orange yellow green purple pink brown black white gray grey golden silver
    animal bird fish fruit vegetable food drink vehicle tool toy instrument furniture clothing
"""
"""Words sentences are built with, whatever the objects are."""


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


def captions_in(path: Path) -> Iterator[str]:
    """Captions of a text file (one a line) or of a Karpathy JSON."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        for image in json.loads(text)["images"]:
            yield from (sentence["raw"] for sentence in image["sentences"])
    else:
        yield from text.splitlines()


def main() -> None:
    """Write the merges file and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=Path, nargs="*", default=[])
    parser.add_argument("--output", type=Path, default=DEMO_MERGES)
    arguments = parser.parse_args()

    texts = [*TEMPLATES, *GRAMMAR.split()]
    for file in sorted(DEMO_FOLDER.rglob("*.json")):
        texts += words_in(json.loads(file.read_text(encoding="utf-8")))
    for file in arguments.captions:
        texts += captions_in(file)
    merges = merges_for(texts)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_merges(arguments.output, merges)

    if arguments.output == DEMO_MERGES:
        tokenizer = load_tokenizer(TokenizerConfig(kind="demo"))
        words = {word for text in texts for word in tokenizer.pat.findall(text.lower())}
        lengths = [len(tokenizer.encode(word)) for word in words]
        print(f"{len(words)} words, {lengths.count(1)} of them one token, {lengths.count(2)} two;")
    print(f"{len(merges)} merges -> {arguments.output}")


if __name__ == "__main__":
    main()
