"""Retrieval on captioned squares, where the right scores are known."""

from __future__ import annotations

import pytest

from maskclip_bench.errors import ConfigError
from tests.tasks.conftest import (
    CollapsedEncoder,
    ColourEncoder,
    MakeContext,
    captions_task,
    run,
    squares_task,
)


def test_retrieval__a_perfect_encoder(make_context: MakeContext) -> None:
    found = run(make_context("retrieval", captions_task(), ColourEncoder()), "retrieval")
    assert found.metrics["image_to_text_recall@1"].value == 1.0
    assert found.metrics["text_to_image_recall@1"].value == 1.0
    assert found.metrics["mean_recall@1"].value == 1.0
    assert found.details["num_texts"] == 12
    assert len(found.outcomes) == 18
    assert found.outcomes["group"].nunique() == 6
    assert found.outcomes["image_to_text_recall@1"].isna().sum() == 12
    assert found.metrics["image_to_text_recall@1"].chance_level == pytest.approx(1 / 6)


def test_retrieval__captions_can_be_cut_and_prefixed(make_context: MakeContext) -> None:
    encoder = ColourEncoder()
    task = captions_task(captions_per_image=1, preset="a_photo_of")
    found = run(make_context("retrieval", task, encoder), "retrieval")
    assert found.details["num_texts"] == 6
    assert "a photo of a red square" in encoder.texts_seen
    assert found.preset == "a_photo_of"


def test_retrieval__ties_are_told(make_context: MakeContext) -> None:
    found = run(make_context("retrieval", captions_task(), CollapsedEncoder()), "retrieval")
    ties = found.details["ties"]["text_to_image_recall"]
    assert ties["tied_queries"] == 1.0
    assert (ties["optimistic@1"], ties["pessimistic@1"]) == (1.0, 0.0)
    # Of 12 texts 2 are right, of 6 images 1: the first right one is expected at 13/3 and 7/2.
    assert found.details["ranks"] == {
        "image_to_text": {"mean": pytest.approx(13 / 3), "median": pytest.approx(13 / 3)},
        "text_to_image": {"mean": 3.5, "median": 3.5},
    }


def test_retrieval__needs_captions(make_context: MakeContext) -> None:
    task = squares_task(protocols={"retrieval": {}})
    with pytest.raises(ConfigError, match="has no captions"):
        run(make_context("retrieval", task, ColourEncoder()), "retrieval")
