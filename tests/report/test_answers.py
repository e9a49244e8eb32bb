from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from PIL import Image

from maskclip_bench.report.answers import answers_drawing

FOUND: dict[str, Any] = {
    "num_images": 6,
    "num_texts": 12,
    "texts": {"0": "a red bird", "3": "<b>a blue one</b>", "5": "grey"},
    "owner": {"0": 0, "3": 1, "5": 2},
    "asked_images": [0],
    "asked_texts": [3],
}
ANSWERS = {
    "images": [{"found": [3, 0, 5], "rank": 2}],
    "texts": [{"found": [2, 0], "rank": 4}],
}


def test_answers__each_query_with_its_answers_hit_or_miss() -> None:
    asked: list[int] = []

    def picture(index: int) -> Image.Image:
        asked.append(index)
        return Image.new("RGB", (8 + index, 6))

    text = answers_drawing(FOUND, ANSWERS, picture).to_svg()
    ET.fromstring(text)
    assert asked == [0, 2, 0]  # the query, then what its caption found
    assert "hit: the first right one is at place 2" in text
    assert "miss: the first right one is at place 4" in text
    assert "2. a red bird ✓" in text
    assert "1. &lt;b&gt;a blue one" in text
    assert text.count("✓") == 1


def test_answers__the_right_image_has_a_frame() -> None:
    def frames(owner: int) -> int:
        found = {**FOUND, "owner": {**FOUND["owner"], "3": owner}}
        drawing = answers_drawing(found, ANSWERS, lambda _: Image.new("RGB", (4, 4)))
        return sum(kind == "rect" for kind, _ in drawing.items)

    assert (frames(1), frames(2)) == (0, 1)
