"""Winoground's and SugarCrepe's scores by hand; ties are never right."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip_bench.config import validate
from maskclip_bench.errors import DataError, NonFiniteError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, TaskDeclaration
from maskclip_bench.tasks.protocols.base import open_split
from maskclip_bench.tasks.protocols.image_text_matching import (
    _caption_choice,
    _winoground,
    similarity,
)
from maskclip_bench.testing import check_protocol
from tests.tasks.conftest import CollapsedEncoder, ColourEncoder, MakeContext, run


def declared(kind: str, preset: str) -> TaskDeclaration:
    values: dict[str, Any] = {
        "name": kind,
        "display_name": kind,
        "world": "real",
        "reader": {"kind": kind, "root": kind},
        "splits": {"test": "test"},
        "protocols": {"image_text_matching": {"preset": preset}},
        "obtain": "-",
    }
    return validate(values, TaskDeclaration, where=kind)


def put(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


RED, BLUE, GREEN = (220, 30, 30), (30, 30, 220), (30, 220, 30)


@pytest.fixture
def pairs(data_root: Path) -> Path:
    """Two examples for `ColourEncoder`: captions of the own images, and swapped ones."""
    root = data_root / "winoground"
    rows = []
    for index, captions in enumerate((("red", "blue"), ("blue", "red"))):
        for side, colour in enumerate((RED, BLUE)):
            put(root / "images" / f"{index}_{side}.png", colour)
        row = {"id": f"e{index}", "collapsed_tag": "Object"}
        row |= {f"image_{side}": f"{index}_{side}.png" for side in (0, 1)}
        row |= {f"caption_{side}": f"a {word} thing" for side, word in enumerate(captions)}
        rows.append(json.dumps(row))
    (root / "examples.jsonl").write_text("\n".join(rows))
    return root


@pytest.fixture
def choices(data_root: Path) -> Path:
    root = data_root / "sugar_crepe"
    put(root / "val2017" / "red.png", RED)
    put(root / "val2017" / "blue.png", BLUE)

    def entry(image: str, right: str, wrong: str) -> dict[str, str]:
        return {"filename": f"{image}.png", "caption": right, "negative_caption": wrong}

    (root / "data").mkdir(exist_ok=True)
    swap = {"0": entry("red", "red", "blue"), "1": entry("blue", "red", "blue")}
    add = {"0": entry("blue", "blue", "green")}
    (root / "data" / "swap_obj.json").write_text(json.dumps(swap))
    (root / "data" / "add_att.json").write_text(json.dumps(add))
    return root


def test_winoground__right_and_swapped_captions(pairs: Path, make_context: MakeContext) -> None:
    task = declared("winoground", "winoground")
    found = run(make_context("image_text_matching", task, ColourEncoder()), "image_text_matching")
    assert found.primary_metric == "group_score"
    assert {name: metric.value for name, metric in found.metrics.items()} == {
        "text_score": 0.5,
        "image_score": 0.5,
        "group_score": 0.5,
    }
    assert found.outcomes["sample_id"].tolist() == ["e0", "e1"]
    assert found.outcomes["group_score"].tolist() == [1.0, 0.0]
    assert found.metrics["group_score"].chance_level == pytest.approx(1 / 6)


@pytest.mark.parametrize(("limit", "examples"), [(1, ["e0"]), (3, ["e0"]), (4, ["e0", "e1"])])
def test_winoground__a_limit_keeps_examples_whole(
    pairs: Path, make_context: MakeContext, limit: int, examples: list[str]
) -> None:
    context = make_context(
        "image_text_matching", declared("winoground", "winoground"), ColourEncoder()
    )
    found = run(dataclasses.replace(context, limit=limit), "image_text_matching")
    assert found.outcomes["sample_id"].tolist() == examples


@pytest.mark.parametrize(
    ("kind", "preset"), [("winoground", "winoground"), ("sugar_crepe", "caption_choice")]
)
def test_ties__are_never_in_the_models_favour(
    kind: str, preset: str, pairs: Path, choices: Path, make_context: MakeContext
) -> None:
    context = make_context("image_text_matching", declared(kind, preset), CollapsedEncoder())
    found = run(context, "image_text_matching")
    assert {metric.value for metric in found.metrics.values()} == {0.0}


def test_winoground__each_score_by_hand(pairs: Path, data_root: Path) -> None:
    """Similarities of an example: its own captions 0.8 and 0.6; what decides is varied."""
    dataset = open_split(
        declared("winoground", "winoground"), "test", Workspace(root=data_root, data=data_root)
    ).take([0, 1])
    # Rows: texts; columns: images. [[c0 i0, c0 i1], [c1 i0, c1 i1]]
    for scores, expected in (
        ([[0.8, 0.1], [0.2, 0.6]], (1, 1, 1)),
        ([[0.8, 0.1], [0.8, 0.6]], (0, 0, 0)),  # c1 ties on i0, and prefers i0 itself
        ([[0.8, 0.7], [0.2, 0.75]], (1, 1, 1)),
        ([[0.8, 0.8], [0.2, 0.9]], (1, 0, 0)),  # c0 has no preference among the images
        ([[0.5, 0.1], [0.6, 0.9]], (0, 1, 0)),
        ([[0.5, 0.1], [0.5, 0.9]], (0, 1, 0)),  # i0 has no preference among the captions
    ):
        images, texts = torch.eye(2), torch.tensor(scores)
        _, outcomes, _ = _winoground(dataset, images, texts)
        found = tuple(outcomes[["text_score", "image_score", "group_score"]].iloc[0].astype(int))
        assert found == expected, scores


def test_caption_choice__by_subset(choices: Path, make_context: MakeContext) -> None:
    task = declared("sugar_crepe", "caption_choice")
    found = run(make_context("image_text_matching", task, ColourEncoder()), "image_text_matching")
    assert {name: metric.value for name, metric in found.metrics.items()} == {
        "caption_accuracy": pytest.approx(2 / 3),
        "caption_accuracy_add_att": 1.0,
        "caption_accuracy_swap_obj": 0.5,
        "mean_subset_accuracy": 0.75,
    }
    assert found.primary_metric == "mean_subset_accuracy"
    assert found.outcomes["caption_accuracy_add_att"].isna().sum() == 2


def test_what_is_no_example(pairs: Path, choices: Path, data_root: Path) -> None:
    workspace = Workspace(root=data_root, data=data_root)
    single = open_split(declared("winoground", "winoground"), "test", workspace)
    double = open_split(declared("sugar_crepe", "caption_choice"), "test", workspace)
    images = torch.eye(4)
    with pytest.raises(DataError, match="preset winoground needs two images of a group"):
        _winoground(double, images[:3], torch.zeros(6, 4))
    with pytest.raises(DataError, match="preset winoground needs two images of a group"):
        _winoground(single.take([0, 2]), images[:2], images[:2])
    with pytest.raises(DataError, match="preset caption_choice needs a right and a wrong"):
        _caption_choice(single, images, images)


def test_similarity__equal_pairs_are_equal_and_nan_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 300, generator=generator)
    found = similarity(image.expand(5, -1), text.expand(5, -1))
    assert len(np.unique(found)) == 1
    with pytest.raises(NonFiniteError, match="embeddings"):
        similarity(torch.tensor([[torch.nan]]), torch.ones(1, 1))


def test_conformance(pairs: Path, tmp_path: Path) -> None:
    task = declared("winoground", "winoground")
    reader = task.reader.model_copy(update={"root": str(pairs)})
    check_protocol(
        PROTOCOLS["image_text_matching"],
        task.model_copy(update={"reader": reader}),
        workspace=tmp_path,
    )
