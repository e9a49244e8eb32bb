"""What a model retrieves, as a drawing: each query, its five nearest answers, hit or miss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from maskclip_bench.report.charts import short
from maskclip_bench.report.drawing import Drawing, fitted

if TYPE_CHECKING:
    from PIL.Image import Image

TILE = 84
GAP = 12
WIDTH = 640
LINE = 17
CHARACTERS = 76
"""Of a caption."""


def answers_drawing(
    found: Mapping[str, Any], answers: Mapping[str, Any], picture: Callable[[int], Image]
) -> Drawing:
    """Images that ask for captions, then captions that ask for images.

    Args:
        found: Queries, texts and owners (`seeing.retrieval.found_by`).
        answers: Of one row, {"images": [...], "texts": [...]}.
        picture: Image of an index.
    """
    by_image = list(zip(found["asked_images"], answers["images"], strict=True))
    by_text = list(zip(found["asked_texts"], answers["texts"], strict=True))
    tall = max(TILE, LINE * 6)
    height = 56 + len(by_image) * (tall + GAP) + 30 + len(by_text) * (TILE + LINE + 2 * GAP)
    counts = f"{found['num_images']:,} images and {found['num_texts']:,} captions"
    title = f"Retrieved among {counts}"
    drawing = Drawing(WIDTH, height, title)
    drawing.text(GAP, 20, title, size=12, bold=True)
    drawing.text(GAP, 40, "An image asks for captions", size=11, bold=True)
    y = 50.0
    for image, answer in by_image:
        _place(drawing, picture(image), GAP, y)
        x = 2 * GAP + TILE
        drawing.text(x, y + 11, _said(answer), size=10.5, fill=_role(answer), bold=True)
        for number, text in enumerate(answer["found"], 1):
            right = found["owner"][str(text)] == image
            line = f"{number}. {short(found['texts'][str(text)], CHARACTERS)}"
            line += " ✓" if right else ""
            role = "good" if right else "ink"
            drawing.text(x, y + 11 + LINE * number, line, size=10.5, fill=role, bold=right)
        y += tall + GAP
    drawing.text(GAP, y + 12, "A caption asks for images", size=11, bold=True)
    y += 30
    for text, answer in by_text:
        caption = f"“{short(found['texts'][str(text)], CHARACTERS)}”"
        drawing.text(GAP, y + 8, caption, size=10.5)
        drawing.text(
            WIDTH - GAP,
            y + 8,
            _said(answer),
            size=10.5,
            fill=_role(answer),
            anchor="end",
            bold=True,
        )
        for number, image in enumerate(answer["found"]):
            x = GAP + number * (TILE + GAP)
            if image == found["owner"][str(text)]:
                drawing.rect(x - 3, y + 15, TILE + 6, TILE + 6, fill="good")
            _place(drawing, picture(image), x, y + 18)
        y += TILE + LINE + 2 * GAP
    return drawing


def _said(answer: Mapping[str, Any]) -> str:
    hit = "hit" if answer["rank"] <= len(answer["found"]) else "miss"
    return f"{hit}: the first right one is at place {answer['rank']:,}"


def _role(answer: Mapping[str, Any]) -> str:
    return "good" if answer["rank"] <= len(answer["found"]) else "bad"


def _place(drawing: Drawing, picture: Image, x: float, y: float) -> None:
    box = fitted(picture.size, TILE)
    drawing.image(x + box[0], y + box[1], box[2], box[3], picture)
