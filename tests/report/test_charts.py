from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from maskclip_bench.report import charts
from maskclip_bench.report.charts import Curve, Estimate, nice_ticks
from maskclip_bench.report.drawing import Drawing


def texts(drawing: Drawing) -> list[str]:
    ET.fromstring(drawing.to_svg())
    return [values["text"] for kind, values in drawing.items if kind == "text"]


def markers(drawing: Drawing) -> list[tuple[float, float]]:
    return [(v["x"], v["y"]) for kind, v in drawing.items if kind == "marker"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 47, [0, 10, 20, 30, 40, 50]),
        (0.1, 0.35, [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]),
        (3, 3, [2.7, 2.8, 2.9, 3.0, 3.1, 3.2, 3.3]),
        (math.nan, 1, [0, 1]),
    ],
)
def test_nice_ticks(low: float, high: float, ticks: list[float]) -> None:
    found = nice_ticks(low, high)
    assert found == pytest.approx(ticks)


def test_nice_ticks__span_the_values() -> None:
    generator = np.random.default_rng(0)
    for low, extent in generator.uniform(0.001, 90, size=(200, 2)):
        found = nice_ticks(low, low + extent)
        assert found[0] <= low + 1e-9
        assert found[-1] >= low + extent - 1e-9
        assert 2 <= len(found) <= 13


def test_intervals__a_higher_score_is_further_right() -> None:
    estimates = [Estimate("a", 0.2, 0.1, 0.3, 0.05), Estimate("b", 0.6, None, None, None, 3)]
    drawing = charts.intervals("Scores", estimates)
    (x0, _), (x1, _) = markers(drawing)
    assert x0 < x1
    assert "20.0 (10.0–30.0)" in texts(drawing)
    assert "60.0" in texts(drawing)


def test_curves__points_that_are_not_finite_are_left_out() -> None:
    curve = Curve("a", [1, 2, 3], [0.5, math.nan, 0.7])
    drawing = charts.curves("Loss", [curve], x_label="step", marked=True)
    assert len(markers(drawing)) == 2
    assert "Loss" in texts(drawing)


def test_curves__one_point_and_none() -> None:
    assert len(markers(charts.curves("x", [Curve("a", [1], [1])], x_label="k"))) == 1
    charts.curves("x", [Curve("a", [1], [math.nan])], x_label="k").to_svg()


def test_scatter__labels_cover_no_point() -> None:
    points = [(5.0 + i / 10, Estimate(f"row {i}", 0.5 + i / 500)) for i in range(4)]
    drawing = charts.scatter("Cost", points, x_label="minutes")
    words = [v for kind, v in drawing.items if kind == "text" and v["text"].startswith("row")]
    assert len(words) == 4
    places = {(round(v["x"]), round(v["y"])) for v in words}
    assert len(places) == 4


def test_class_bars__highest_first_and_the_middle_left_out() -> None:
    names = [f"c{i}" for i in range(60)]
    drawing = charts.class_bars("By class", names, [i / 60 for i in range(60)])
    shown = texts(drawing)
    assert shown[0] == "c59"
    assert "… 36 classes between" in shown
    assert "c0" in shown
    assert "c30" not in shown


def test_class_bars__classes_without_samples_and_all_zero() -> None:
    drawing = charts.class_bars("By class", ["a", "b"], [math.nan, 0.0])
    assert "a" not in texts(drawing)
    charts.class_bars("By class", [], []).to_svg()


def test_confusion__one_box_a_count() -> None:
    counts = np.array([[3, 1], [0, 2]])
    drawing = charts.confusion("Confusion", counts, ["a", "b"])
    boxes = [values for kind, values in drawing.items if kind == "rect"][1:]
    assert [box["fill"] for box in boxes] == ["good", "bad", "good"]
    assert boxes[0]["opacity"] > boxes[1]["opacity"]


def test_calibration__by_hand() -> None:
    # Bins of a half: confidences 0.4, 0.2 with 1 of 2 right; 0.9, 0.7 with 2 of 2 right.
    _, error = charts.calibration("x", [0.4, 0.2, 0.9, 0.7], [1, 0, 1, 1], num_bins=2)
    assert error == pytest.approx((2 * abs(0.5 - 0.3) + 2 * abs(1 - 0.8)) / 4)


def test_calibration__the_ends_and_nothing() -> None:
    _, error = charts.calibration("x", [0.0, 1.0], [0, 1])
    assert error == 0
    assert charts.calibration("x", [], [])[1] == 0


def test_short__says_that_it_was_cut() -> None:
    assert charts.short("a" * 40, 10) == "a" * 9 + "…"
