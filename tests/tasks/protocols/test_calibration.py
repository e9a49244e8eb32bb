"""Calibration on coloured squares, and the temperature of logits whose right one is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from maskclip_bench.errors import ConfigError, NonFiniteError
from maskclip_bench.results.intervals import metric_interval
from maskclip_bench.results.measurement import Measurement
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.metrics import expected_calibration_error
from maskclip_bench.tasks.protocols.calibration import fit_temperature
from maskclip_bench.testing import check_protocol, tiny_images
from tests.tasks.conftest import (
    BlindEncoder,
    CollapsedEncoder,
    ColourEncoder,
    MakeContext,
    run,
    squares_task,
)


def measured(make_context: MakeContext, encoder: object, **settings: Any) -> Measurement:
    declared = {"prompts": "two", **settings}
    task = squares_task(protocols={"calibration": declared})
    return run(make_context("calibration", task, encoder), "calibration")


def test_calibration__of_the_zero_shot_classifier(make_context: MakeContext) -> None:
    found = measured(make_context, ColourEncoder())
    value = {name: metric.value for name, metric in found.metrics.items()}
    outcomes = found.outcomes
    assert value["top1_accuracy"] == 1.0
    gap = 1 - outcomes["confidence"].mean()
    assert value["expected_calibration_error"] == pytest.approx(gap, abs=1e-5)
    assert value["truth_probability"] == pytest.approx(np.exp(-found.details["nll"]))
    assert (outcomes["confidence"] == outcomes["truth_confidence"]).all()
    assert found.details["nll_tempered"] <= found.details["nll"] + 1e-6
    assert found.details["tuned_on"] == "train"
    assert not found.metrics["brier_score"].higher_is_better
    for name, metric in found.metrics.items():
        interval = metric_interval(outcomes, name, metric.statistic, metric.columns)
        assert interval is not None, name
        assert interval.low <= metric.value <= interval.high, name
    assert found.metrics["expected_calibration_error"].chance_level is None


def test_calibration__a_collapsed_model_says_1_of_6_and_is_right_that_often(
    make_context: MakeContext,
) -> None:
    found = measured(make_context, CollapsedEncoder())
    value = {name: metric.value for name, metric in found.metrics.items()}
    assert value["expected_calibration_error"] == pytest.approx(0, abs=1e-6)
    assert value["truth_probability"] == pytest.approx(1 / 6)
    assert value["brier_score"] == pytest.approx(found.metrics["brier_score"].chance_level)
    assert found.details["temperature"] == 1.0


def test_calibration__of_the_linear_probe_on_a_split_of_its_own(make_context: MakeContext) -> None:
    task = squares_task(
        splits={"train": "train", "test": "val"},
        protocols={"calibration": {"preset": "linear_probe", "tuned_on": "tune"}},
    )
    found = run(make_context("calibration", task, BlindEncoder()), "calibration")
    assert found.metrics["top1_accuracy"].value > 0.9
    assert PROTOCOLS["calibration"].needs_text_tower(task) is False


def test_calibration__the_test_split_chooses_nothing(make_context: MakeContext) -> None:
    with pytest.raises(ConfigError, match="tuned_on is the test split, which may choose nothing"):
        measured(make_context, ColourEncoder(), tuned_on="val")
    task = squares_task(protocols={"calibration": {"prompts": "two", "tuned_on": "val"}})
    context = make_context("calibration", task, ColourEncoder())
    with pytest.raises(ConfigError, match="tuned_on is the test split"):
        run(dataclasses.replace(context, limit=3), "calibration")


def test_calibration__nor_the_split_that_a_probe_is_fitted_on(make_context: MakeContext) -> None:
    task = squares_task(
        protocols={"calibration": {"preset": "linear_probe", "tuned_on": "train"}},
    )
    with pytest.raises(ConfigError, match="tuned_on is 'train', on which the probe is fitted"):
        run(make_context("calibration", task, BlindEncoder()), "calibration")


def test_calibration__a_limit_is_one_of_all_splits(make_context: MakeContext) -> None:
    task = squares_task(protocols={"calibration": {"prompts": "two"}})
    context = make_context("calibration", task, ColourEncoder())
    found = run(dataclasses.replace(context, limit=7), "calibration")
    assert (found.details["num_images"], found.details["num_tuned_on"]) == (7, 7)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "prompts go with preset zero_shot"),
        ({"preset": "linear_probe", "prompts": "two"}, "prompts go with preset zero_shot"),
        ({"preset": "linear_probe"}, "its temperature needs a split of its own"),
    ],
)
def test_settings__what_does_not_fit(settings: dict[str, Any], text: str) -> None:
    task = squares_task(protocols={"calibration": settings})
    with pytest.raises(ConfigError, match=text):
        PROTOCOLS["calibration"].settings_of(task)


def test_fit_temperature__finds_the_one_that_made_the_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(logits / 4, labels) == pytest.approx(0.25, rel=0.05)
    tempered = (3 * logits / 3).softmax(1)
    hits = (tempered.argmax(1) == labels).double().numpy()
    error = expected_calibration_error(tempered.amax(1).double().numpy(), hits)
    assert error < 0.015
    over = (3 * logits).softmax(1).amax(1).double().numpy()
    assert expected_calibration_error(over, hits) > 0.1
    with pytest.raises(NonFiniteError, match="class scores"):
        fit_temperature(torch.tensor([[torch.nan, 0.0]]), torch.tensor([0]))


def test_conformance(tmp_path: Any) -> None:
    settings = {"calibration": {"prompts": "class_name_only"}}
    task = tiny_images(tmp_path / "colours").model_copy(update={"protocols": settings})
    check_protocol(PROTOCOLS["calibration"], task, workspace=tmp_path)
