"""What several models see on the same images: pictures and numbers in a folder, and their list.

    pictures/seen/image-0.webp              the images that are drawn
    pictures/seen/mask-0.png                their classes
    pictures/seen/{row}/0-{view}.png        what a model makes of them
    pictures/seen.json                      the list, with the numbers

| view | shows |
| --- | --- |
| own | principal components of the model's own patches, one basis for all images |
| shared | the same in one basis for all models |
| attention | what the pooled feature attends to |
| text | cosine of the patches with the name of the largest object |
| nearest | the patches of other images that are nearest to a patch of that object |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from maskclip_bench import storage
from maskclip_bench.backbones.loading import Backbone
from maskclip_bench.errors import ConfigError, MaskCLIPBenchError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.report.seeing import measures, pictures
from maskclip_bench.report.seeing.numbers import (
    PER_IMAGE,
    Sample,
    difference,
    draw_patches,
    number,
    outcomes_of,
)
from maskclip_bench.report.seeing.patches import Sight, resampled, see
from maskclip_bench.report.seeing.scenes import Scenes

VERSION = 2
"""Raised when a picture or number changes its meaning; older ones are then made again."""

Floats = NDArray[np.floating]

FOLDER = "pictures/seen"
LIST = "pictures/seen.json"

VIEWS = ("own", "shared", "attention", "text", "nearest")


@dataclass(frozen=True)
class RowToSee:
    """A model that is looked through.

    Attributes:
        row_id: Its row.
        label: For people.
        identity: Hash of its weights and preprocessing.
        load: Loads it.
    """

    row_id: str
    label: str
    identity: str
    load: Callable[[], Backbone]


@dataclass
class Query:
    """A patch of an object in a drawn image.

    Attributes:
        image: Index of the image.
        name: Class of the object; -1 without masks.
        x: Place of the patch, a share of the width.
        y: Of the height.
    """

    image: int
    name: int
    x: float
    y: float

    def patch(self, grid: int) -> int:
        """Its index on a grid."""
        return min(int(self.y * grid), grid - 1) * grid + min(int(self.x * grid), grid - 1)


@dataclass
class Seen:
    """What was seen so far.

    Attributes:
        scenes: The images.
        queries: One a drawn image.
        sights: By row.
        tables: Outcome tables by row and number.
        failed: Row -> why there is nothing of it.
    """

    scenes: Scenes
    queries: list[Query]
    sights: dict[str, Sight] = field(default_factory=dict)
    tables: dict[str, dict[str, pd.DataFrame]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def key_of(rows: Sequence[RowToSee], scenes: Scenes) -> str:
    """Hash of all that the pictures depend on."""
    return storage.fingerprint(
        [
            VERSION,
            [[row.row_id, row.identity] for row in rows],
            [scenes.name, scenes.ids, scenes.tiles, scenes.fingerprint],
        ]
    )


def look(
    rows: Sequence[RowToSee],
    scenes: Scenes,
    folder: Path,
    *,
    baseline: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Draw what the models see and write it below `folder`; what is there already is kept.

    Args:
        rows: The models, in the order of the page.
        scenes: The images.
        folder: Of the report.
        baseline: Row that others are compared with.
        progress: Told of the images of each model.

    Returns:
        The list that is also in `pictures/seen.json`.

    Raises:
        StorageError: The disk refused.
    """
    key = key_of(rows, scenes)
    known = storage.read_object(folder / LIST)
    if known is not None and known.get("key") == key and known.get("baseline") == baseline:
        return known
    seen = run_models(rows, scenes, progress=progress)
    values: dict[str, Any] = {
        "key": key,
        "weights": {row.row_id: row.identity for row in rows},
        "baseline": baseline,
        "data_set": scenes.name,
        "num_images": len(scenes),
        "tiles": scenes.tiles,
        "images": _write_images(seen, folder),
        "rows": {},
        "failed": seen.failed,
    }
    shared = shared_colours(seen)
    for row in rows:
        if row.row_id in seen.sights:
            views = draw_row(seen, row.row_id, shared.get(row.row_id))
            values["rows"][row.row_id] = {
                "label": row.label,
                **_write_views(views, folder, row.row_id),
                "numbers": _numbers(seen, row.row_id, baseline),
                "attention_of": seen.sights[row.row_id].attention_of,
                "notes": seen.sights[row.row_id].notes,
            }
    storage.write_json(folder / LIST, values)
    return values


def run_models(
    rows: Sequence[RowToSee], scenes: Scenes, *, progress: Progress = no_progress
) -> Seen:
    """Every model over all images; one that cannot be looked through is listed with the reason."""
    seen = Seen(scenes, [_query(scenes, index) for index in scenes.shown])
    for row in rows:

        def tell(_: str, done: int, total: int, label: str = row.label) -> None:
            progress(f"what {label} sees", done, total)

        try:
            sight = see(row.load(), scenes, progress=tell)
        except MaskCLIPBenchError as error:
            seen.failed[row.row_id] = str(error)
            continue
        seen.sights[row.row_id] = sight
        seen.tables[row.row_id] = outcomes_of(sight, scenes)
    return seen


def _query(scenes: Scenes, index: int) -> Query:
    """The patch of the largest object that is deepest inside it; without masks the middle."""
    objects = scenes.objects(index)
    if not objects or scenes.masks is None:
        return Query(index, -1, 0.5, 0.5)
    from scipy.ndimage import distance_transform_edt

    inside = scenes.masks[index] == objects[0]
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    height, width = inside.shape
    return Query(index, objects[0], (int(column) + 0.5) / width, (int(row) + 0.5) / height)


def shared_colours(seen: Seen) -> dict[str, list[Floats]]:
    """Row -> colours of each drawn image in the basis of all rows."""
    if not seen.sights:
        return {}
    grid = min(sight.grid for sight in seen.sights.values())
    stacked = [
        np.concatenate([resampled(sight.tokens[i], grid) for i in seen.scenes.shown])
        for sight in seen.sights.values()
    ]
    colours = measures.shared_basis(stacked)
    return {
        row_id: list(values.reshape(len(seen.scenes.shown), grid * grid, 3))
        for row_id, values in zip(seen.sights, colours, strict=True)
    }


def draw_row(
    seen: Seen, row_id: str, shared: list[Floats] | None
) -> dict[str, list[tuple[Image.Image, Any]]]:
    """View -> one (picture, whether it is right) a drawn image; views that a row lacks are absent.

    Args:
        seen: From `run_models`.
        row_id: Which row.
        shared: Its colours in the basis of all rows.
    """
    sight, scenes = seen.sights[row_id], seen.scenes
    grid = sight.grid
    tokens = np.concatenate([sight.tokens[index] for index in scenes.shown])
    own, _ = measures.own_basis(tokens)
    by_image = own.reshape(len(scenes.shown), grid * grid, 3)
    views: dict[str, list[tuple[Image.Image, Any]]] = {
        "own": [(pictures.colour_map(colours, grid), None) for colours in by_image]
    }
    if shared is not None:
        side = round(len(shared[0]) ** 0.5)
        views["shared"] = [(pictures.colour_map(colours, side), None) for colours in shared]
    if sight.attention:
        views["attention"] = [
            (pictures.heat_map(sight.attention[index], grid), None) for index in scenes.shown
        ]
    if sight.text_scores:
        views["text"] = [_text_view(sight, scenes, query) for query in seen.queries]
    if len(scenes) > 1:
        views["nearest"] = _nearest_views(seen, row_id)
    return views


def _text_view(sight: Sight, scenes: Scenes, query: Query) -> tuple[Image.Image, Any]:
    from maskclip_bench.report.seeing.patches import upsampled

    scores = np.ascontiguousarray(sight.text_scores[query.image][:, max(query.name, 0)])
    right = None
    if scenes.masks is not None and query.name >= 0:
        mask = scenes.masks[query.image]
        full = upsampled(scores, sight.grid, mask.shape)
        right = measures.pointing_hit(full, mask == query.name) >= 0.5
    return pictures.heat_map(scores, sight.grid), right


def _nearest_views(seen: Seen, row_id: str) -> list[tuple[Image.Image, Any]]:
    """The nearest patches of other images, of each query."""
    sight, scenes = seen.sights[row_id], seen.scenes
    bank = (
        draw_patches(scenes, sight.grid) if scenes.masks is not None else _any_patches(seen, row_id)
    )
    tokens = np.stack([sight.tokens[i][p] for i, p in zip(bank.image, bank.patch, strict=True)])
    views = []
    for query in seen.queries:
        own = sight.tokens[query.image][query.patch(sight.grid)]
        together = np.concatenate([tokens, own[None]])
        image = np.append(bank.image, query.image)
        classes = np.append(bank.classes, query.name)
        _, nearest = measures.neighbour_hits(
            together, classes, image, np.array([len(tokens)]), k=measures.NUM_NEIGHBOURS
        )
        found = nearest[0]
        right = [bool(query.name < 0 or classes[i] == query.name) for i in found]
        crops = [
            pictures.crop_around(scenes.images[image[i]], int(bank.patch[i]), sight.grid)
            for i in found
        ]
        picture = pictures.crops_together(crops, right)
        views.append((picture, None if query.name < 0 else [int(hit) for hit in right]))
    return views


def _any_patches(seen: Seen, row_id: str) -> Sample:
    """Evenly drawn patches where no mask names any."""
    grid = seen.sights[row_id].grid
    generator = np.random.default_rng(0)
    patches = [
        np.sort(generator.permutation(grid * grid)[: 2 * PER_IMAGE]) for _ in seen.scenes.ids
    ]
    image = np.repeat(np.arange(len(patches)), [len(part) for part in patches])
    nothing = np.full(len(image), -1, dtype=np.int64)
    return Sample(image, np.concatenate(patches), nothing, np.zeros(len(image), dtype=bool))


def _write_images(seen: Seen, folder: Path) -> list[dict[str, Any]]:
    scenes = seen.scenes
    target = folder / FOLDER
    entries = []
    for position, query in enumerate(seen.queries):
        index = query.image
        image = f"{FOLDER}/image-{position}.webp"
        save(pictures.shown(scenes.images[index]), folder / image)
        entry: dict[str, Any] = {
            "id": scenes.ids[index],
            "file": image,
            "width": scenes.images[index].width,
            "height": scenes.images[index].height,
            "classes": [scenes.class_names[c] for c in scenes.objects(index)],
            "target": scenes.class_names[query.name] if query.name >= 0 else None,
            "query": [query.x, query.y],
        }
        if scenes.masks is not None:
            entry["mask"] = f"{FOLDER}/mask-{position}.png"
            picture = pictures.mask_picture(scenes.masks[index], len(scenes.class_names))
            save(picture, folder / entry["mask"])
        entries.append(entry)
    assert target.is_dir() or not entries
    return entries


def _write_views(
    views: dict[str, list[tuple[Image.Image, Any]]], folder: Path, row_id: str
) -> dict[str, Any]:
    files: dict[str, list[str]] = {}
    hits: dict[str, list[Any]] = {}
    for view, drawn in views.items():
        for position, (picture, right) in enumerate(drawn):
            suffix = ".webp" if view == "nearest" else ".png"
            name = f"{FOLDER}/{row_id}/{position}-{view}{suffix}"
            save(picture, folder / name)
            files.setdefault(view, []).append(name)
            if right is not None:
                hits.setdefault(view, []).append(right)
    return {"views": files, "hits": hits}


def _numbers(seen: Seen, row_id: str, baseline: str | None) -> dict[str, Any]:
    numbers = {}
    for name, table in seen.tables[row_id].items():
        numbers[name] = number(table)
        other = seen.tables.get(baseline or "", {}).get(name)
        if other is not None and baseline != row_id:
            numbers[name]["difference"] = difference(table, other)
    return numbers


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all; the format is that of the suffix.

    Raises:
        ConfigError: The suffix is no format that is written here.
        StorageError: The disk refused.
    """
    formats: dict[str, dict[str, Any]] = {
        ".png": {"format": "PNG", "optimize": True},
        ".webp": {"format": "WEBP", "quality": 80, "method": 4},
    }
    if path.suffix not in formats:
        raise ConfigError(f"{path.name!r} is neither .png nor .webp. Name the file so.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_file(path) as temporary:
        picture.save(temporary, **formats[path.suffix])
