"""The linear probe on coloured squares: its presets, its search, its store."""

from __future__ import annotations

import pytest

from maskclip_bench.errors import ConfigError
from maskclip_bench.tasks import PROTOCOLS
from tests.tasks.conftest import (
    BlindEncoder,
    ColourEncoder,
    MakeContext,
    run,
    squares_task,
)


def test_linear_probe__is_fitted_once_for_two_test_splits(make_context: MakeContext) -> None:
    encoder = ColourEncoder()
    first = run(make_context("linear_probe", squares_task(), encoder), "linear_probe")
    seen = encoder.images_seen
    assert seen == 48 + 24
    task = squares_task(splits={"train": "train", "test": "train"})
    second = run(make_context("linear_probe", task, encoder), "linear_probe")
    assert encoder.images_seen == seen
    assert second.details["C"] == first.details["C"]
    assert second.details["search_on"] == "20% of train"


def test_linear_probe__searches_on_a_validation_split(make_context: MakeContext) -> None:
    task = squares_task(splits={"train": "train", "validation": "val", "test": "val"})
    found = run(make_context("linear_probe", task, ColourEncoder()), "linear_probe")
    assert found.details["search_on"] == "validation split"
    assert len(found.details["data"]) == 2


def test_linear_probe__fixed_c_on_joint_embeddings(make_context: MakeContext) -> None:
    task = squares_task(protocols={"linear_probe": {"preset": "clip_readme_logistic"}})
    found = run(make_context("linear_probe", task, ColourEncoder()), "linear_probe")
    assert found.details["C"] == pytest.approx(0.316)
    assert found.details["normalized"] is True
    with pytest.raises(ConfigError, match="has no text tower"):
        run(make_context("linear_probe", task, BlindEncoder()), "linear_probe")


def test_linear_probe__a_preset_that_augments_is_not_faked() -> None:
    task = squares_task(protocols={"linear_probe": {"preset": "slip_linear"}})
    with pytest.raises(ConfigError, match=r"clip_logistic.*slip_linear"):
        PROTOCOLS["linear_probe"].settings_of(task)
