"""A contact sheet of any data set: some images of each split, with classes, captions, masks, boxes.

Images are read through the data set's own reader, so the sheet shows what a protocol sees.
"""

from __future__ import annotations

import io
import logging
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskclip_bench import storage
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.data.left_over import shown
from maskclip_bench.data.masks import mask_values
from maskclip_bench.data.text_files import read_json
from maskclip_bench.errors import DataError

logger = logging.getLogger(__name__)

TILE = 160
GAP = 10
LINE = 13
COLUMNS = 8
WORDS = 26
"""Characters of a line below a picture."""
LINES = 5
INK = (36, 38, 44)
BOX = (230, 57, 70)


def contact_sheet(
    splits: dict[str, Dataset],
    output: Path,
    *,
    names: Sequence[str] = (),
    rows: int = 3,
) -> None:
    """Write a PNG with images of every split, spread evenly over it.

    Args:
        splits: Title -> split.
        output: Where the PNG goes.
        names: Words for the classes; empty = those of the data set.
        rows: Rows of images of each split.

    What cannot be read has an empty tile that says so.

    Raises:
        DataError: An annotation cannot be read.
        StorageError: The disk refused the PNG.
    """
    strips = [
        _strip(f"{title}: {len(data):,} images", data, list(names) or data.class_names, rows)
        for title, data in splits.items()
    ]
    sheet = Image.new(
        "RGB", (max(s.width for s in strips), sum(s.height for s in strips)), (255, 255, 255)
    )
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    with storage.atomic_file(output) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _strip(title: str, dataset: Dataset, names: Sequence[str], rows: int) -> Image.Image:
    """The title of a split, and rows of its images."""
    number = min(len(dataset), COLUMNS * rows)
    chosen = [index * len(dataset) // number for index in range(number)]
    height = TILE + LINES * LINE + GAP
    width = COLUMNS * (TILE + GAP) + GAP
    strip = Image.new("RGB", (width, 26 + height * -(-number // COLUMNS)), (255, 255, 255))
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(11)
    pen.text((GAP, 6), shown(title), fill=INK, font=ImageFont.load_default(14))
    overlay = _overlay(dataset)
    for place, index in enumerate(chosen):
        left = GAP + place % COLUMNS * (TILE + GAP)
        top = 26 + place // COLUMNS * height
        lines = _lines(dataset, index, names)
        try:
            strip.paste(_fit(overlay(index)), (left, top))
        except DataError as error:
            logger.warning("%s", error)
            pen.rectangle((left, top, left + TILE, top + TILE), outline=BOX, width=2)
            lines = ["cannot be read", *textwrap.wrap(shown(dataset.sample_ids[index]), WORDS)]
        for line, text in enumerate(lines[:LINES]):
            pen.text((left, top + TILE + 2 + LINE * line), text, fill=INK, font=font)
    return strip


def _fit(picture: Image.Image) -> Image.Image:
    """A square of the tile's side with the picture in it."""
    picture.thumbnail((TILE, TILE))
    tile = Image.new("RGB", (TILE, TILE), (240, 240, 240))
    tile.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return tile


def _lines(dataset: Dataset, index: int, names: Sequence[str]) -> list[str]:
    """What is known of an image: its classes, captions, or its name."""
    texts: list[str] = []
    if dataset.labels is not None:
        label = int(dataset.labels[index])
        texts.append(f"{label} {names[label] if label < len(names) else ''}")
    if dataset.multi_labels is not None:
        present = np.flatnonzero(dataset.multi_labels[index] == 1)
        texts.append(", ".join(names[label] for label in present) or "no class")
    if dataset.captions is not None:
        texts += dataset.captions[index]
    lines = [
        line
        for text in texts or [dataset.sample_ids[index]]
        for line in textwrap.wrap(shown(text), WORDS)
    ]
    return lines[:LINES]


def _overlay(dataset: Dataset) -> Callable[[int], Image.Image]:
    """Index -> image, with its mask or its boxes laid over it."""
    if len(dataset.annotations) == len(dataset) and len(dataset) != 1:
        return lambda index: _with_mask(dataset.image(index), dataset.annotations[index])
    if len(dataset.annotations) == 1 and dataset.annotations[0].suffix == ".json":
        boxes = _boxes(dataset.annotations[0])
        return lambda index: _with_boxes(
            dataset.image(index), boxes.get(dataset.sample_ids[index], [])
        )
    return dataset.image


def _with_mask(picture: Image.Image, mask: Path) -> Image.Image:
    """The picture, and over it a colour for each value of its mask."""
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    palette[[0, 255]] = 0
    colours = Image.fromarray(palette[mask_values(mask)]).resize(
        picture.size, Image.Resampling.NEAREST
    )
    return Image.blend(picture, colours, 0.5)


def _boxes(path: Path) -> dict[str, list[Any]]:
    """Image -> its boxes, of a COCO file."""
    content = read_json(path)
    name_of = {image["id"]: image["file_name"] for image in content["images"]}
    found: dict[str, list[Any]] = {}
    for annotation in content["annotations"]:
        found.setdefault(name_of[annotation["image_id"]], []).append(annotation["bbox"])
    return found


def _with_boxes(picture: Image.Image, boxes: Sequence[Any]) -> Image.Image:
    pen = ImageDraw.Draw(picture)
    for left, top, width, height in boxes:
        pen.rectangle((left, top, left + width, top + height), outline=BOX, width=2)
    return picture
