"""Zero-shot classification on coloured squares, where the right scores are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.errors import ConfigError
from maskclip_bench.tasks import PROTOCOLS
from tests.tasks.conftest import (
    BlindEncoder,
    ColourEncoder,
    MakeContext,
    run,
    square,
    squares_task,
)


def test_zero_shot__details_and_metrics(make_context: MakeContext) -> None:
    found = run(
        make_context("zero_shot_classification", squares_task(), ColourEncoder()),
        "zero_shot_classification",
    )
    assert set(found.metrics) == {"top1_accuracy", "top5_accuracy", "mean_per_class_accuracy"}
    assert found.preset == "two"
    assert found.details["num_prompts"] == 12
    assert found.details["num_templates"] == 2
    assert found.outcomes["prediction"].tolist() == found.outcomes["label"].tolist()


def test_zero_shot__wrong_names_permute_the_answers(make_context: MakeContext) -> None:
    names = ["green", "red", "blue", "yellow", "purple", "cyan"]
    context = make_context(
        "zero_shot_classification", squares_task(class_names={"names": names}), ColourEncoder()
    )
    found = run(context, "zero_shot_classification")
    assert found.metrics["top1_accuracy"].value == pytest.approx(4 / 6)
    assert found.outcomes["prediction"].tolist()[:8] == [1] * 4 + [0] * 4


def test_zero_shot__answers_among_the_classes_present(make_context: MakeContext) -> None:
    names = [*("red", "green", "blue", "yellow", "purple", "cyan"), "black", "white"]
    task = squares_task(class_names={"names": names, "present_only": True})
    found = run(make_context("zero_shot_classification", task, ColourEncoder()), task_name())
    assert found.details["num_classes"] == 6
    assert found.metrics["top1_accuracy"].chance_level == pytest.approx(1 / 6)


def task_name() -> str:
    return "zero_shot_classification"


@pytest.mark.parametrize(
    ("metric", "value"), [("mean_of_top1_and_top5", 1.0), ("mean_per_class_accuracy", 1.0)]
)
def test_zero_shot__primary_metric_is_the_data_sets(
    metric: str, value: float, make_context: MakeContext
) -> None:
    task = squares_task(
        protocols={"zero_shot_classification": {"prompts": "two", "metric": metric}}
    )
    found = run(make_context("zero_shot_classification", task, ColourEncoder()), task_name())
    assert found.primary_metric == metric
    assert found.metrics[metric].value == value


def test_zero_shot__roc_auc_needs_two_classes(make_context: MakeContext) -> None:
    task = squares_task(
        protocols={"zero_shot_classification": {"prompts": "two", "metric": "roc_auc"}}
    )
    with pytest.raises(ConfigError, match="needs two classes, the data has 6"):
        run(make_context("zero_shot_classification", task, ColourEncoder()), task_name())


def test_zero_shot__needs_a_text_tower(make_context: MakeContext) -> None:
    context = make_context("zero_shot_classification", squares_task(), BlindEncoder())
    with pytest.raises(ConfigError, match="has no text tower"):
        run(context, "zero_shot_classification")
    timm = BackboneDeclaration(display_name="MAE", world="real", source={"timm": "vit"})
    reason = PROTOCOLS["zero_shot_classification"].left_out(squares_task(), timm)
    assert reason == "MAE has no text tower, which Zero-shot needs"
    assert PROTOCOLS["knn"].left_out(squares_task(), timm) is None


def test_zero_shot__images_of_several_classes(make_context: MakeContext, data_root: Path) -> None:
    """In VOC's layout, with the metric of its 2007 challenge."""
    folder = data_root / "voc" / "VOCdevkit" / "VOC2007"
    if not folder.exists():
        (folder / "JPEGImages").mkdir(parents=True)
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        generator = np.random.default_rng(0)
        names = [f"{colour}{index}" for colour in ("red", "blue") for index in range(3)]
        for name in names:
            square(name[:-1], generator).save(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(names))
        for colour in ("red", "blue"):
            lines = [f"{name} {1 if name.startswith(colour) else -1}" for name in names]
            path = folder / "ImageSets" / "Main" / f"{colour}_test.txt"
            path.write_text("\n".join(lines))
    task = squares_task(
        reader={"kind": "voc", "root": "voc"},
        splits={"test": "test"},
        protocols={
            "zero_shot_classification": {
                "prompts": "two",
                "metric": "mean_average_precision_11_point",
            }
        },
    )
    found = run(make_context("zero_shot_classification", task, ColourEncoder()), task_name())
    assert found.primary_metric == "mean_average_precision_11_point"
    assert {metric.value for metric in found.metrics.values()} == {1.0}
    assert found.metrics["mean_average_precision"].chance_level == 0.5
