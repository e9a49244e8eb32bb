"""What several models retrieve for the same queries: the five nearest captions, and images.

    pictures/retrieval.json     queries, answers, ranks of the first right one
    pictures/retrieval.webp     the images that occur, on one sheet

T texts, I images, P joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.report.images import write_sheet
from maskclip_bench.report.seeing.look import RowToSee
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.protocols.base import evenly_spaced, open_split

VERSION = 1
LIST = "pictures/retrieval.json"
SHEET = "pictures/retrieval.webp"
NUM_QUERIES = 4
"""Of images, and as many of texts."""
TOP = 5
TILE = 96


@dataclass(frozen=True)
class Answer:
    """What a query found.

    Attributes:
        found: Indices of the `TOP` nearest, nearest first.
        rank: Place of the nearest right one, from 1.
    """

    found: list[int]
    rank: int


def answer(query: Tensor, candidates: Tensor, right: Sequence[int]) -> Answer:
    """The nearest candidates of a query, and the place of the first right one.

    Args:
        query: [P].
        candidates: [N, P], L2-normalised like the query.
        right: Indices of the right ones, at least one.

    Example:
        Scores (0.2, 0.9, 0.5) with the right one at index 2: found (1, 2, 0), rank 2.
    """
    scores = candidates @ query
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    wanted = set(right)
    rank = next(place for place, index in enumerate(order, 1) if index in wanted)
    return Answer(order[:TOP], rank)


def retrieve(
    rows: Sequence[RowToSee],
    task: TaskDeclaration,
    workspace: Workspace,
    folder: Path,
    *,
    progress: Progress = no_progress,
) -> dict[str, Any] | None:
    """Let every model with a text tower answer the same queries; write the list and the sheet.

    Args:
        rows: The models.
        task: A data set with captions.
        workspace: Where its files and stored features are.
        folder: Of the report.
        progress: Told of what is encoded.

    Returns:
        The list that is also in `pictures/retrieval.json`; None if no model answers.

    Raises:
        DataError: The data is missing or broken.
        StorageError: The disk refused.
    """
    dataset = open_split(task, "test", workspace)
    key = storage.fingerprint(
        [VERSION, dataset.fingerprint, [[row.row_id, row.identity] for row in rows]]
    )
    known = storage.read_object(folder / LIST)
    if known is not None and known.get("key") == key:
        return known
    captions = dataset.need_captions()
    texts = [caption for of_image in captions for caption in of_image]
    owner = [image for image, of_image in enumerate(captions) for _ in of_image]
    first_text = [0]
    for of_image in captions:
        first_text.append(first_text[-1] + len(of_image))
    with_text = [index for index in range(len(dataset)) if captions[index]]
    asked_images = [with_text[i] for i in evenly_spaced(len(with_text), NUM_QUERIES)]
    asked_texts = [first_text[with_text[i]] for i in _between(len(with_text), NUM_QUERIES)]
    store = FeatureStore(workspace.features)
    answers: dict[str, Any] = {}
    for row in rows:
        try:
            backbone = row.load()
            if not backbone.has_text:
                continue
            images = store.images(backbone, dataset, progress=progress).joint
            embedded = store.texts(backbone, texts, progress=progress)
        except MaskCLIPBenchError:  # the cell's record says why
            continue
        assert images is not None
        answers[row.row_id] = {
            "images": [
                vars(answer(images[i], embedded, range(first_text[i], first_text[i + 1])))
                for i in asked_images
            ],
            "texts": [vars(answer(embedded[t], images, [owner[t]])) for t in asked_texts],
        }
    if not answers:
        return None
    weights = {row.row_id: row.identity for row in rows}
    asked = (asked_images, asked_texts)
    return _write(key, weights, task, folder, dataset, texts, owner, asked, answers)


def _write(
    key: str,
    weights: dict[str, str],
    task: TaskDeclaration,
    folder: Path,
    dataset: Any,
    texts: list[str],
    owner: list[int],
    asked: tuple[list[int], list[int]],
    answers: dict[str, Any],
) -> dict[str, Any]:
    asked_images, asked_texts = asked
    shown = {*asked_images, *(owner[text] for text in asked_texts)}
    said = set(asked_texts)
    for of_row in answers.values():
        shown |= {image for one in of_row["texts"] for image in one["found"]}
        said |= {text for one in of_row["images"] for text in one["found"]}
    order = sorted(shown)
    ids = [dataset.sample_ids[index] for index in order]
    pictures = [dataset.image(index) for index in order]
    sheet = write_sheet(pictures, ids, folder, SHEET, tile=TILE)
    values = {
        "key": key,
        "weights": weights,
        "data_set": task.name,
        "num_images": len(dataset),
        "num_texts": len(texts),
        "sheet": {**sheet.to_json(), "tile": sheet.tile, "place": sheet.place},
        "ids": {str(index): dataset.sample_ids[index] for index in order},
        "texts": {str(index): texts[index] for index in sorted(said)},
        "owner": {str(index): owner[index] for index in sorted(said)},
        "asked_images": asked_images,
        "asked_texts": asked_texts,
        "answers": answers,
    }
    storage.write_json(folder / LIST, values)
    return values


def _between(number: int, at_most: int) -> list[int]:
    """Evenly spaced places between those of `evenly_spaced`."""
    count = min(number, at_most)
    return [min(number - 1, (2 * index + 1) * number // (2 * count)) for index in range(count)]
