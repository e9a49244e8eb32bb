"""AP under weights: against pycocotools and scikit-learn on data sets with images repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from maskclip_bench.results.average_precision import CocoAP, MultiLabelAP
from maskclip_bench.results.measurement import statistic_value
from maskclip_bench.tasks.metrics import mean_average_precision
from tests.results.detections import coco_of, drawn_detections, evaluated, matched_table

SIZES = {
    "all": "box_ap",
    "small": "box_ap_small",
    "medium": "box_ap_medium",
    "large": "box_ap_large",
}


def weights_of(random: np.random.Generator, number: int, columns: int = 4) -> np.ndarray:
    drawn = (
        np.zeros((number, 0))
        if not columns
        else np.stack(
            [
                np.bincount(random.integers(0, number, number), minlength=number)
                for _ in range(columns)
            ],
            axis=1,
        )
    )
    return np.concatenate([np.ones((number, 1)), drawn], axis=1).astype(float)


@pytest.mark.parametrize(("seed", "digits"), [(0, 1), (1, 1), (2, 9), (3, 9)])
def test_coco_ap__of_any_resample_is_pycocotools(seed: int, digits: int) -> None:
    """With ties only for the images as they are: two copies of one have another order."""
    pytest.importorskip("mmengine")
    pytest.importorskip("pycocotools")
    random = np.random.default_rng(seed)
    content, found = coco_of(random, num_images=12, digits=digits)
    table = matched_table(evaluated(content, found), content)
    weights = weights_of(random, 12, columns=0 if digits == 1 else 4)
    for column in range(weights.shape[1]):
        repeated = repeat_images(content, found, weights[:, column].astype(int))
        stats = evaluated(*repeated).stats  # AP, AP50, AP75, small, medium, large
        expected = {
            ("box_ap", CocoAP.of): stats[0],
            ("box_ap", CocoAP.of_50): stats[1],
            ("box_ap", CocoAP.of_75): stats[2],
            ("box_ap_small", CocoAP.of): stats[3],
            ("box_ap_medium", CocoAP.of): stats[4],
            ("box_ap_large", CocoAP.of): stats[5],
        }
        for (matches, make), value in expected.items():
            ours = make(table, ["box_ap", matches]).values(weights[:, [column]])[0]
            assert ours == pytest.approx(max(value, 0.0), abs=1e-9), (column, matches)


def repeat_images(
    content: dict[str, Any], found: list[Any], times: np.ndarray
) -> tuple[dict[str, Any], list[Any]]:
    """The data set with each image as often as it was drawn; ties keep the order of the images."""
    images, objects, again = [], [], []
    for image, number in zip(content["images"], times, strict=True):
        for _ in range(number):
            key = len(images) + 1
            images.append({**image, "id": key})
            for one in content["annotations"]:
                if one["image_id"] == image["id"]:
                    objects.append({**one, "image_id": key, "id": len(objects) + 1})
            again += [{**d, "image_id": key} for d in found if d["image_id"] == image["id"]]
    return {**content, "images": images, "annotations": objects}, again


def test_coco_ap__rows_in_any_order_and_groups_of_images() -> None:
    random = np.random.default_rng(4)
    table = drawn_detections(random, num_images=30)
    value = statistic_value(table, "box_ap", "coco_ap", ["box_ap", "box_ap"])
    shuffled = table.sample(frac=1.0, random_state=0).reset_index(drop=True)
    assert statistic_value(shuffled, "box_ap", "coco_ap", ["box_ap"] * 2) == pytest.approx(
        value, abs=1e-12
    )
    grouped = table.assign(group=[f"g{index // 3}" for index in range(30)])
    one, other = CocoAP.of(table, ["box_ap"] * 2), CocoAP.of(grouped, ["box_ap"] * 2)
    weights = weights_of(random, 10)
    assert other.values(weights) == pytest.approx(one.values(np.repeat(weights, 3, axis=0)))


def test_coco_ap__blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    table = drawn_detections(np.random.default_rng(5), num_images=20)
    statistic = CocoAP.of(table, ["box_ap"] * 2)
    expected = statistic.resampled(30, seed=1)
    monkeypatch.setattr("maskclip_bench.results.average_precision._BLOCK", 100)
    assert statistic.resampled(30, seed=1).tolist() == expected.tolist()


def test_coco_ap__by_hand() -> None:
    """Of two objects one is found, at all thresholds, then comes a wrong box: half the recall."""
    every = (1 << 10) - 1

    def value(scores: list[float], hits: list[int], objects: int, ignored: list[int]) -> float:
        table = pd.DataFrame(
            {
                "sample_id": ["a"],
                "group": ["a"],
                "m.scores": [scores],
                "m.classes": [[0] * len(scores)],
                "m.hits": [hits],
                "m.ignored": [ignored],
                "m.objects": [[objects]],
            }
        )
        return CocoAP.of(table, ["m", "m"]).value

    assert value([0.9, 0.5], [every, 0], 2, [0, 0]) == pytest.approx(51 / 101)
    assert value([0.5, 0.9], [every, 0], 1, [0, 0]) == pytest.approx(1 / 2)  # the wrong one first
    assert value([0.5, 0.9], [every, 0], 1, [0, every]) == pytest.approx(1.0)  # it is ignored
    assert value([], [], 3, []) == 0.0
    assert value([], [], 0, []) == 0.0


@pytest.mark.parametrize("make", [MultiLabelAP.of, MultiLabelAP.of_11_points])
def test_multi_label_ap__of_any_resample(make: Any) -> None:
    random = np.random.default_rng(6)
    scores = random.normal(size=(40, 3)).round(1)  # with ties
    labels = random.choice([0, 1, -1], size=(40, 3), p=[0.6, 0.3, 0.1])
    table = pd.DataFrame(
        {
            "sample_id": [str(index) for index in range(40)],
            "group": [str(index) for index in range(40)],
            "scores": list(scores),
            "labels": list(labels),
        }
    )
    points = 11 if make == MultiLabelAP.of_11_points else None
    weights = weights_of(random, 40)
    found = make(table, ["scores", "labels"]).values(weights)
    for column in range(weights.shape[1]):
        drawn = np.repeat(np.arange(40), weights[:, column].astype(int))
        expected, _ = mean_average_precision(scores[drawn], labels[drawn], points=points)
        assert found[column] == pytest.approx(expected, abs=1e-12)
    if points is None:
        scored = labels[:, 0] >= 0
        of_sklearn = average_precision_score(labels[scored, 0] == 1, scores[scored, 0])
        alone = table.assign(scores=list(scores[:, :1]), labels=list(labels[:, :1]))
        assert make(alone, ["scores", "labels"]).value == pytest.approx(of_sklearn)


def test_multi_label_ap__a_class_that_was_not_drawn_is_left_out() -> None:
    table = pd.DataFrame(
        {
            "sample_id": ["a", "b"],
            "group": ["a", "b"],
            "scores": [[1.0, 0.0], [0.0, 1.0]],
            "labels": [[1, 0], [0, 1]],
        }
    )
    statistic = MultiLabelAP.of(table, ["scores", "labels"])
    assert statistic.values(np.array([[1.0, 2.0], [1.0, 0.0]])).tolist() == [1.0, 1.0]


def derivative(statistic: Any) -> np.ndarray:
    """Of each group, from weights that are a little more than one, in ten thousandths."""
    weights = np.full((statistic.num_groups, statistic.num_groups), 1.0)
    weights += np.diag(np.full(statistic.num_groups, 1e-3))
    return (statistic.values(weights) - statistic.value) / 1e-3


def test_influence__of_the_area_is_its_derivative() -> None:
    random = np.random.default_rng(7)
    scores, labels = random.normal(size=(25, 2)), random.integers(0, 2, (25, 2))
    table = pd.DataFrame(
        {
            "sample_id": [str(index) for index in range(25)],
            "group": [str(index) for index in range(25)],
            "scores": list(scores),
            "labels": list(labels),
        }
    )
    statistic = MultiLabelAP.of(table, ["scores", "labels"])
    assert statistic.influence().sum() == pytest.approx(0, abs=1e-12)
    assert statistic.influence() == pytest.approx(derivative(statistic), abs=2e-3)


@pytest.mark.parametrize("num_images", [60, 300])
def test_influence__gives_the_spread_of_resamples(num_images: int) -> None:
    table = drawn_detections(np.random.default_rng(8), num_images=num_images)
    statistic = CocoAP.of(table, ["box_ap"] * 2)
    influence = statistic.influence()
    assert influence.sum() == pytest.approx(0, abs=1e-12)
    spread = statistic.resampled(400, seed=0).std()
    assert np.sqrt((influence**2).sum()) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"m.scores": [[np.nan]]}, "holds numbers that are not finite"),
        ({"m.classes": [[2]]}, "holds what is none of 2 classes"),
        ({"m.classes": [[-1]]}, "holds what is none of 2 classes"),
        ({"m.hits": [[1, 1]]}, "are of different detections"),
        ({"m.objects": [["x", "y"]]}, "needs a list of one length"),
        ({"m.objects": [3]}, "needs a list, one entry a class"),
        ({"m.scores": [None]}, "hold no list: nothing was measured"),
        ({"m.scores": [7.0]}, "are not those of a coco_ap"),
    ],
)
def test_coco_ap__columns_that_do_not_fit(changes: dict[str, Any], text: str) -> None:
    good = {"m.scores": [[0.5]], "m.classes": [[0]], "m.hits": [[1]], "m.ignored": [[0]]}
    table = pd.DataFrame(
        {"sample_id": ["a"], "group": ["a"], **good, "m.objects": [[1, 0]], **changes}
    )
    with pytest.raises(ValueError, match=text):
        statistic_value(table, "m", "coco_ap", ["m", "m"])
    with pytest.raises(ValueError, match=r"missing \['other.hits'"):
        statistic_value(table, "m", "coco_ap", ["m", "other"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scores": [[np.inf, 0.0]]}, "holds numbers that are not finite"),
        ({"labels": [[1]]}, "are lists of different lengths"),
        ({"labels": [["a", "b"]]}, "needs a list of one length"),
        ({"scores": [None]}, "hold no list"),
    ],
)
def test_multi_label_ap__columns_that_do_not_fit(changes: dict[str, Any], text: str) -> None:
    good = {"sample_id": ["a"], "group": ["a"], "scores": [[1.0, 0.0]], "labels": [[1, 0]]}
    with pytest.raises(ValueError, match=text):
        statistic_value(
            pd.DataFrame({**good, **changes}), "m", "multi_label_ap", ["scores", "labels"]
        )
