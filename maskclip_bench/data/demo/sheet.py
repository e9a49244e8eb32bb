"""A picture of the demo world to look at: images of every split, read back from the files."""

from __future__ import annotations

import io
import json
import tarfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from maskclip_bench import storage
from maskclip_bench.data.demo.layouts import SPLITS
from maskclip_bench.data.demo.slices import SLICES
from maskclip_bench.errors import DataError

TILE = 216
GAP = 12
LINE = 15
COLUMNS = 7
MARGIN = 24
FONT_SIZE = 12
INK = (36, 38, 44)
FAINT = (110, 114, 122)


@dataclass(frozen=True)
class _Tile:
    """A picture and the lines below it."""

    picture: Image.Image
    lines: tuple[str, ...]


def contact_sheet(demo_root: Path, output: Path) -> None:
    """Write a PNG that shows images of every split with captions, labels, boxes and masks.

    Args:
        demo_root: A demo world, as `prepare_demo` returns it.
        output: Where the PNG goes.

    Raises:
        DataError: The world is not there or misses a file.
        StorageError: The disk refused the PNG.
    """
    try:
        rows = [
            (title, tiles)
            for read in (_pairs, _objects, _captions, _scenes, _instances)
            for title, tiles in read(demo_root)
        ]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{demo_root} is no whole demo world: {error.filename} is missing. "
            "Make it with: maskclip-bench data prepare demo"
        ) from error
    buffer = io.BytesIO()
    _lay_out(rows).save(buffer, "PNG")
    with storage.atomic_file(output) as temporary:
        temporary.write_bytes(buffer.getvalue())


Rows = Iterator[tuple[str, list[_Tile]]]


def _pairs(root: Path) -> Rows:
    """The first pairs of the first shard."""
    shards = sorted((root / "pretrain" / "shards").glob("*.tar"))
    if not shards:
        raise FileNotFoundError(2, "missing", str(root / "pretrain" / "shards"))
    summary = _json(root / "pretrain" / "shards.json")
    tiles = []
    with tarfile.open(shards[0]) as archive:
        names = [name for name in archive.getnames() if name.endswith(".jpg")]
        for name in names[: 2 * COLUMNS]:
            picture = _open(archive.extractfile(name))
            content = archive.extractfile(name.replace(".jpg", ".json"))
            assert content is not None
            tiles.append(_Tile(picture, tuple(json.load(content)["captions"])))
    title = f"pretrain: {summary['num_samples']:,} pairs in {len(shards)} webdataset shards"
    yield title, tiles


def _objects(root: Path) -> Rows:
    """Images of classes far apart, each of another vendor."""
    names = {entry["wnid"]: entry["name"] for entry in _json(root / "objects" / "classes.json")}
    for split in SPLITS["objects"]:
        if split in SLICES and not (root / "objects" / f"{split}.json").exists():
            continue
        sidecar: dict[str, dict[str, str]] = _json(root / "objects" / f"{split}.json")
        paths = list(sidecar)
        # A step that is prime to the number of vendors shows all of them.
        step = max(1, len(paths) // COLUMNS - (len(paths) // COLUMNS) % 6 + 1)
        tiles = [
            _Tile(
                _open(root / "objects" / split / path),
                (names[path.split("/", maxsplit=1)[0]], sidecar[path]["drawing"]),
            )
            for path in paths[::step][:COLUMNS]
        ]
        yield f"objects/{split}: {len(paths):,} images of {len(names)} classes", tiles


def _captions(root: Path) -> Rows:
    """Images with their five captions."""
    images = _json(root / "captions" / "dataset_demo.json")["images"]
    for split in SPLITS["captions"]:
        chosen = [image for image in images if image["split"] == split]
        tiles = [
            _Tile(
                _open(root / "captions" / "images" / image["filename"]),
                tuple(sentence["raw"] for sentence in image["sentences"]),
            )
            for image in _spread(chosen)
        ]
        yield f"captions, {split}: {len(chosen):,} images with five captions each", tiles


def _scenes(root: Path) -> Rows:
    """Images, and below them their labels."""
    classes = _json(root / "scenes" / "classes.json")
    palette = np.zeros((256, 3), dtype=np.uint8)
    for entry in classes:
        palette[entry["id"]] = entry["color"]
    names = {entry["id"]: entry["name"] for entry in classes}
    for split in SPLITS["scenes"]:
        paths = sorted((root / "scenes" / "images" / split).glob("*.jpg"))
        tiles = []
        for path in _spread(paths):
            labels = np.asarray(
                Image.open(root / "scenes" / "annotations" / split / f"{path.stem}.png")
            )
            picture = _open(path)
            colors = Image.fromarray(palette[labels])
            halves = Image.new("RGB", (picture.width, 2 * picture.height))
            halves.paste(picture, (0, 0))
            halves.paste(Image.blend(picture, colors, 0.85), (0, picture.height))
            present = ", ".join(names[label] for label in np.unique(labels) if label)
            tiles.append(_Tile(halves, (present,)))
        yield f"scenes/{split}: {len(paths):,} images with semantic labels", tiles


def _instances(root: Path) -> Rows:
    """Images with the boxes and masks of their objects."""
    for split in SPLITS["instances"]:
        content = _json(root / "instances" / "annotations" / f"instances_{split}.json")
        names = {category["id"]: category["name"] for category in content["categories"]}
        tiles = []
        for image in _spread(content["images"]):
            found = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            picture = _open(root / "instances" / split / image["file_name"])
            lines = [f"{names[a['category_id']]}, {a['area']} px" for a in found]
            tiles.append(_Tile(_with_instances(picture, found), tuple(lines)))
        title = (
            f"instances/{split}: {len(content['images']):,} images, "
            f"{len(content['annotations']):,} objects"
        )
        yield title, tiles


def _with_instances(picture: Image.Image, annotations: Sequence[dict[str, Any]]) -> Image.Image:
    """Enlarge a picture and lay the boxes and the edges of the masks over it."""
    scale = TILE / picture.width
    canvas = picture.resize((TILE, TILE), Image.Resampling.LANCZOS)
    for position, annotation in enumerate(annotations):
        color = _MARKS[position % len(_MARKS)]
        mask = Image.fromarray(mask_of(annotation["segmentation"]).astype(np.uint8) * 90)
        canvas.paste(color, (0, 0), mask.resize(canvas.size, Image.Resampling.NEAREST))
        left, top, width, height = (scale * value for value in annotation["bbox"])
        box = (left, top, left + width - 1, top + height - 1)
        ImageDraw.Draw(canvas).rectangle(box, outline=color, width=2)
    return canvas


_MARKS = (
    (230, 57, 70),
    (29, 131, 226),
    (255, 190, 11),
    (76, 201, 100),
    (170, 80, 220),
    (251, 133, 30),
)


def mask_of(segmentation: dict[str, Any]) -> NDArray[np.bool_]:
    """Decode COCO's uncompressed run lengths; the inverse of `formats.run_lengths`.

    Example:
        >>> mask_of({"counts": [1, 3], "size": [2, 2]}).tolist()
        [[False, True], [True, True]]
    """
    counts = segmentation["counts"]
    ones = np.arange(len(counts)) % 2 == 1
    return np.repeat(ones, counts).reshape(segmentation["size"], order="F")


def _spread(values: Sequence[Any]) -> list[Any]:
    """Values for one row, spread evenly."""
    step = max(1, len(values) // COLUMNS)
    return list(values[::step][:COLUMNS])


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _open(source: Any) -> Image.Image:
    with Image.open(source) as image:
        return image.convert("RGB")


def _lay_out(rows: Sequence[tuple[str, list[_Tile]]]) -> Image.Image:
    """All rows below each other, each with its title."""
    small, large = ImageFont.load_default(FONT_SIZE), ImageFont.load_default(FONT_SIZE + 6)
    width = 2 * MARGIN + COLUMNS * (TILE + GAP) - GAP
    drawn: list[tuple[int, Callable[[ImageDraw.ImageDraw, Image.Image, int], None]]] = []

    def title_row(text: str) -> tuple[int, Callable[..., None]]:
        def draw(pen: ImageDraw.ImageDraw, sheet: Image.Image, top: int) -> None:
            pen.text((MARGIN, top), text, fill=INK, font=large)

        return 30, draw

    def tile_row(tiles: Sequence[_Tile]) -> tuple[int, Callable[..., None]]:
        pictures = [_fit(tile.picture) for tile in tiles]
        texts = [_wrap(tile.lines) for tile in tiles]
        height = max(p.height for p in pictures) + 6 + LINE * max(len(t) for t in texts) + GAP

        def draw(pen: ImageDraw.ImageDraw, sheet: Image.Image, top: int) -> None:
            for column, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
                left = MARGIN + column * (TILE + GAP)
                sheet.paste(picture, (left, top))
                for number, (line, ink) in enumerate(lines):
                    corner = (left, top + picture.height + 4 + LINE * number)
                    pen.text(corner, line, fill=ink, font=small)

        return height, draw

    for title, tiles in rows:
        drawn.append(title_row(title))
        drawn += [
            tile_row(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)
        ]
    sheet = Image.new("RGB", (width, 2 * MARGIN + sum(height for height, _ in drawn)), "white")
    pen, top = ImageDraw.Draw(sheet), MARGIN
    for height, draw in drawn:
        draw(pen, sheet, top)
        top += height
    return sheet


def _fit(picture: Image.Image) -> Image.Image:
    """Scale to the width of a tile."""
    size = (TILE, round(picture.height * TILE / picture.width))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _wrap(lines: Sequence[str]) -> list[tuple[str, tuple[int, int, int]]]:
    """Break long lines; every second line is fainter, so that captions can be told apart."""
    return [
        (part, INK if number % 2 == 0 else FAINT)
        for number, line in enumerate(lines)
        for part in textwrap.wrap(line, 35)
    ]
