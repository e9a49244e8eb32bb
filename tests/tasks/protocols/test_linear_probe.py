"""The linear probe on coloured squares: its presets, its search, its store."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from maskclip_bench.errors import ConfigError
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.protocols.linear_probe import scale_of
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


class ScaledEncoder(ColourEncoder):
    """The same features in another unit."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward_features(images) * self.scale


@pytest.mark.parametrize("scale", [2.0**-30, 2.0**-90, 2.0**40])
def test_linear_probe__the_scale_of_features_does_not_decide(
    make_context: MakeContext, scale: float
) -> None:
    usual, scaled = (
        run(
            dataclasses.replace(
                make_context("linear_probe", squares_task(), ScaledEncoder(each)),
                features=FeatureStore(),
            ),
            "linear_probe",
        )
        for each in (1.0, scale)
    )
    assert usual.metrics["top1_accuracy"].value > 0.9
    assert scaled.metrics["top1_accuracy"].value == usual.metrics["top1_accuracy"].value
    assert "features_multiplied_by" not in usual.details
    assert 0.1 < scaled.details["features_multiplied_by"] * scale < 100


def test_scale_of__a_power_of_two() -> None:
    features = torch.tensor([[0.0], [2.0]])
    assert scale_of(features) == 1.0
    assert scale_of(features * 1e-20) == pytest.approx(1e20, rel=0.5)
    assert scale_of(torch.full((3, 2), 1e-20)) == 1.0  # no spread
