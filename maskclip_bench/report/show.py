"""Single pictures as files: the charts and mistakes of a cell, and what models see on an image."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from maskclip_bench.backbones.resolve import cell_name
from maskclip_bench.data.images import decode
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.report.cells import cell_page, mistakes_of, outcomes_of
from maskclip_bench.report.charts import short
from maskclip_bench.report.drawing import Drawing, fitted
from maskclip_bench.report.images import Gallery
from maskclip_bench.report.looking import RETRIEVAL, has_torch, rows_to_see
from maskclip_bench.report.selection import Selection, select
from maskclip_bench.report.stored_pictures import StoredPicture, stored_pictures
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from PIL.Image import Image

    from maskclip_bench.data.dataset import Dataset
    from maskclip_bench.report.seeing.look import Seen

logger = logging.getLogger(__name__)

TILE = 112
GAP = 14
NUM_MISTAKES = 24
COLUMNS = 6

VIEW_TITLES = {
    "own": "features, own colours",
    "shared": "features, common colours",
    "attention": "attention",
}


def show_cells(what: str, workspace: Workspace, output: Path, *, suffix: str) -> list[Path]:
    """Draw every chart of the cells that a pattern names.

    Args:
        what: "row/protocol/data set"; each part may have "*" and "?".
        workspace: Where records and data are.
        output: Folder of the files.
        suffix: ".png" or ".svg".

    Returns:
        The files, `{row}__{protocol}__{data set}__{chart}{suffix}`.

    Raises:
        ConfigError: No cell has that name, or the suffix is another.
        DataError: The cell failed.
        StorageError: The disk refused.
    """
    store = RecordStore(workspace.records)
    missing = max(0, 2 - what.count("/"))
    pattern = cell_name(what + missing * "/*")
    records = [r for r in store.all() if fnmatch(f"{r.row_id}/{r.task}", pattern)]
    if not records:
        known = sorted({record.row_id for record in store.all()})
        raise ConfigError(
            f"{what!r} is no image file, and no recorded cell of {store.root} has that name. A "
            f"cell is row/protocol/data set; recorded rows: {', '.join(known) or 'none'}."
        )
    if len(records) == 1:
        _ = records[0].primary  # a failed cell says why it has no picture
    selection = select(store)
    gallery = Gallery(selection.datasets, workspace, output)
    files = []
    for record in records:
        if record.status != "ok":
            continue
        drawings = drawings_of(record, store, gallery)
        for key, drawing in drawings.items():
            name = f"{record.row_id}__{record.cell.protocol}__{record.cell.dataset}__{key}"
            files.append(_save(drawing, output / f"{name}{suffix}"))
    return files


def drawings_of(record: Record, store: RecordStore, gallery: Gallery) -> dict[str, Drawing]:
    """Every drawing of an ok cell by name; "metrics" is always there."""
    outcomes = outcomes_of(store, record)
    selection = select(store, backbones=[record.cell.backbone], tasks=[record.task])
    page = cell_page(record, selection, outcomes, _without_sheets(gallery))
    found = {chart.key: chart.drawing for chart in page.charts}
    dataset = gallery.dataset(record.cell.dataset)
    if outcomes is not None and dataset is not None:
        names = gallery.class_names[record.cell.dataset]
        mistakes, what = mistakes_of(record, outcomes, names, dataset.split)
        place = {name: index for index, name in enumerate(dataset.sample_ids)}
        shown = [mistake for mistake in mistakes if mistake.image in place][:NUM_MISTAKES]
        if shown:
            pictures = [(dataset.image(place[m.image]), m.caption) for m in shown]
            found["mistakes"] = picture_grid(what, pictures)
    stored = stored_pictures(record, gallery.workspace)
    if stored:
        found["predictions"] = _beside(stored)
    if dataset is not None and record.cell.protocol == RETRIEVAL:
        answers = _answers(record, selection, dataset, gallery.workspace)
        found |= {} if answers is None else {"answers": answers}
    return found


def _answers(
    record: Record, selection: Selection, dataset: Dataset, workspace: Workspace | None
) -> Drawing | None:
    """What the row retrieves; None without torch, or without the weights that were measured."""
    if workspace is None or not has_torch():
        return None
    from maskclip_bench.report.answers import answers_drawing
    from maskclip_bench.report.seeing.retrieval import Questions, answer_all, found_by
    from maskclip_bench.tasks.features import FeatureStore

    rows = rows_to_see(selection, workspace, seed=record.cell.seed)
    asked = Questions.of(dataset)
    answers = answer_all(rows, asked, FeatureStore(workspace.features))
    if record.row_id not in answers:
        logger.info("No answers of %s are drawn: its weights are not here.", record.row_id)
        return None
    found = found_by(asked, answers)
    return answers_drawing(found, answers[record.row_id], dataset.image)


def _beside(stored: Sequence[StoredPicture]) -> Drawing:
    """Predictions beside the truth, one below the other."""
    width, y = 640.0, 34.0
    images = [(decode(picture.path, what=picture.path.name), picture) for picture in stored]
    heights = [width * image.height / image.width for image, _ in images]
    title = "Truth on the left, prediction on the right"
    drawing = Drawing(width + 2 * GAP, y + sum(heights) + 30 * len(heights), title)
    drawing.text(GAP, 20, title, size=12, bold=True)
    for (image, picture), height in zip(images, heights, strict=True):
        drawing.image(GAP, y, width, height, image)
        caption = f"{picture.split}/{picture.sample_id}"
        drawing.text(GAP, y + height + 13, caption, size=9.5, fill="muted")
        y += height + 30
    return drawing


def _without_sheets(gallery: Gallery) -> Gallery:
    """The same data sets; no sheet is written, as there is no page."""
    return _NoSheets(gallery.datasets, gallery.workspace, gallery.folder)


class _NoSheets(Gallery):
    def sheet(self, name: str) -> None:
        return None


def picture_grid(title: str, pictures: Sequence[tuple[Image, str]]) -> Drawing:
    """Pictures in lines, each with its caption.

    Args:
        title: Above them.
        pictures: (picture, caption).
    """
    columns = min(COLUMNS, len(pictures))
    lines = -(-len(pictures) // columns)
    step_x, step_y = TILE + GAP, TILE + GAP + 28
    drawing = Drawing(max(columns * step_x + GAP, 560), 34 + lines * step_y, title)
    drawing.text(GAP, 20, title, size=12, bold=True)
    for index, (picture, caption) in enumerate(pictures):
        row, column = divmod(index, columns)
        x, y = GAP + column * step_x, 32 + row * step_y
        _place(drawing, picture, x, y)
        truth, arrow, said = caption.partition(" → ")
        drawing.text(x, y + TILE + 13, short(truth, 21), size=9.5, fill="muted")
        drawing.text(x, y + TILE + 25, short(f"→ {said}", 21) if arrow else "", size=9.5)
    return drawing


def _place(drawing: Drawing, picture: Image, x: float, y: float) -> None:
    left, top, width, height = fitted(picture.size, TILE)
    drawing.image(x + left, y + top, width, height, picture)


def show_image(
    path: Path,
    backbones: Sequence[str],
    workspace: Workspace,
    output: Path,
    *,
    suffix: str,
    tiles: int = 1,
    device: str = "cpu",
) -> list[Path]:
    """Draw what models see on one image: features in own and common colours, attention.

    Args:
        path: The image.
        backbones: Rows, models of a family, or folders (see `resolve_backbone`).
        workspace: Where rows made here are.
        output: Folder of the file.
        suffix: ".png" or ".svg".
        tiles: Windows along a side in which the image is read.
        device: Where models run.

    Raises:
        DataError: The image cannot be read, or no model shows patch tokens; says why.
        UnknownNameError: A model is not known.
        StorageError: The disk refused.
    """
    from maskclip_bench.backbones import load_backbone, resolve_backbone
    from maskclip_bench.report.seeing.look import RowToSee, run_models
    from maskclip_bench.report.seeing.scenes import scenes_of_files

    scenes = scenes_of_files([path], tiles=tiles)
    rows = []
    for name in backbones:
        declaration = resolve_backbone(name)
        load = partial(load_backbone, declaration, workspace=workspace, device=device)
        rows.append(RowToSee(declaration.name, declaration.display_name, "", load))
    seen = run_models(rows, scenes)
    if not seen.sights:
        reasons = "; ".join(f"{row}: {why}" for row, why in seen.failed.items())
        raise DataError(f"No model sees {path.name}: {reasons}")
    labels = {row.row_id: row.label for row in rows}
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "image"
    return [_save(_image_drawing(path.name, seen, labels), output / f"{stem}__seen{suffix}")]


def _image_drawing(name: str, seen: Seen, labels: dict[str, str]) -> Drawing:
    """A line for each model: the image, then its views."""
    from maskclip_bench.report.seeing.look import draw_row, shared_colours
    from maskclip_bench.report.seeing.pictures import over, shown

    image = shown(seen.scenes.images[0])
    shared = shared_colours(seen)
    title = f"What models see on {name}"
    step = TILE + GAP
    drawing = Drawing(150 + 4 * step + GAP, 60 + len(seen.sights) * step, title)
    drawing.text(GAP, 20, title, size=12, bold=True)
    for column, text in enumerate(["image", *VIEW_TITLES.values()]):
        drawing.text(150 + column * step, 46, text, size=9.5, fill="muted")
    for row, row_id in enumerate(seen.sights):
        y = 54 + row * step
        drawing.text(GAP, y + TILE / 2, labels[row_id][:20], size=11)
        views = draw_row(seen, row_id, shared.get(row_id))
        _place(drawing, image, 150, y)
        for column, view in enumerate(VIEW_TITLES, start=1):
            if view not in views:
                continue
            picture = views[view][0][0]
            if view == "attention":
                picture = over(image, picture)
            else:
                picture = picture.resize(image.size, resample=0)
            _place(drawing, picture, 150 + column * step, y)
    return drawing


def _save(drawing: Drawing, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.save(path)
    return path
