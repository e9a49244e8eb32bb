"""What several models retrieve for the same queries: the five nearest captions, and images.

    pictures/retrieval.json     queries, answers, ranks of the first right one
    pictures/retrieval.webp     the images that occur, on one sheet

T texts, I images, P joint width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.data.dataset import Dataset
from maskclip_bench.errors import MaskCLIPBenchError, StorageError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.report.images import write_sheet
from maskclip_bench.report.seeing.look import RowToSee
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.protocols.base import evenly_spaced, open_split

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Questions:
    """The queries that every model answers, evenly spaced over a split.

    Attributes:
        dataset: Images with captions.
        texts: All captions, image by image.
        owner: Index of the image of each text.
        first_text: Index of the first text of each image, and one more.
        images: Indices of the images that are asked with.
        captions: Indices of the texts that are asked with.
    """

    dataset: Dataset
    texts: list[str]
    owner: list[int]
    first_text: list[int]
    images: list[int]
    captions: list[int]

    @classmethod
    def of(cls, dataset: Dataset) -> Questions:
        """A few queries of a split.

        Raises:
            DataError: It has no captions.
        """
        captions = dataset.need_captions()
        first_text = [0]
        for of_image in captions:
            first_text.append(first_text[-1] + len(of_image))
        with_text = [index for index in range(len(dataset)) if captions[index]]
        return cls(
            dataset,
            [caption for of_image in captions for caption in of_image],
            [image for image, of_image in enumerate(captions) for _ in of_image],
            first_text,
            [with_text[i] for i in evenly_spaced(len(with_text), NUM_QUERIES)],
            [first_text[with_text[i]] for i in _between(len(with_text), NUM_QUERIES)],
        )


def answer_all(
    rows: Sequence[RowToSee],
    asked: Questions,
    store: FeatureStore,
    *,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Row -> its answers to the images and to the texts, {"images": [...], "texts": [...]}.

    A model without a text tower, or one that cannot be loaded, is left out.

    Args:
        rows: The models.
        asked: The queries.
        store: Of features.
        progress: Told of what is encoded.

    Raises:
        StorageError: The disk refused.
    """
    answers: dict[str, Any] = {}
    for row in rows:
        try:
            backbone = row.load()
            if not backbone.has_text:
                continue
            images = store.images(backbone, asked.dataset, progress=progress).joint
            embedded = store.texts(backbone, asked.texts, progress=progress)
        except StorageError:
            raise
        except MaskCLIPBenchError as error:
            logger.info("%s answers no query: %s", row.label, error)
            continue
        assert images is not None
        right_texts = [range(asked.first_text[i], asked.first_text[i + 1]) for i in asked.images]
        answers[row.row_id] = {
            "images": [
                vars(answer(images[i], embedded, right))
                for i, right in zip(asked.images, right_texts, strict=True)
            ],
            "texts": [vars(answer(embedded[t], images, [asked.owner[t]])) for t in asked.captions],
        }
    return answers


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
    asked = Questions.of(dataset)
    answers = answer_all(rows, asked, FeatureStore(workspace.features), progress=progress)
    if not answers:
        return None
    weights = {row.row_id: row.identity for row in rows}
    values = {"key": key, "weights": weights, "data_set": task.name, **found_by(asked, answers)}
    order = [int(index) for index in values["ids"]]
    pictures = [dataset.image(index) for index in order]
    sheet = write_sheet(pictures, list(values["ids"].values()), folder, SHEET, tile=TILE)
    values["sheet"] = {**sheet.to_json(), "tile": sheet.tile, "place": sheet.place}
    storage.write_json(folder / LIST, values)
    return values


def found_by(asked: Questions, answers: dict[str, Any]) -> dict[str, Any]:
    """Queries and answers with the texts and ids that occur in them, as plain values."""
    owner, texts = asked.owner, asked.texts
    shown = {*asked.images, *(owner[text] for text in asked.captions)}
    said = set(asked.captions)
    for of_row in answers.values():
        shown |= {image for one in of_row["texts"] for image in one["found"]}
        said |= {text for one in of_row["images"] for text in one["found"]}
    return {
        "num_images": len(asked.dataset),
        "num_texts": len(texts),
        "ids": {str(index): asked.dataset.sample_ids[index] for index in sorted(shown)},
        "texts": {str(index): texts[index] for index in sorted(said)},
        "owner": {str(index): owner[index] for index in sorted(said)},
        "asked_images": asked.images,
        "asked_texts": asked.captions,
        "answers": answers,
    }


def _between(number: int, at_most: int) -> list[int]:
    """Evenly spaced places between those of `evenly_spaced`."""
    count = min(number, at_most)
    return [min(number - 1, (2 * index + 1) * number // (2 * count)) for index in range(count)]
