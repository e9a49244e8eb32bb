from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from maskclip_bench.report.forest import Difference, forest


def circles(text: str) -> list[tuple[float, str]]:
    """Horizontal place and fill of each circle, in drawing order."""
    root = ET.fromstring(text)
    found = root.iter("{http://www.w3.org/2000/svg}circle")
    return [(float(circle.attrib["cx"]), circle.attrib["fill"]) for circle in found]


def test_forest__clear_ones_are_filled_and_coloured_by_who_is_better() -> None:
    lines = [
        Difference("ahead", 0.05, 0.02, 0.08, is_clear=True),
        Difference("behind", -0.05, -0.08, -0.02, is_clear=True),
        Difference("less error", -0.05, -0.08, -0.02, is_clear=True, higher_is_better=False),
        Difference("open", 0.01, -0.02, 0.04),
        Difference("untested", 0.0),
    ]
    drawing = forest(lines, first="A", second="B")
    found = circles(drawing.to_svg(inline=True))
    assert [fill for _, fill in found] == [
        "var(--good)", "var(--bad)", "var(--good)",
        "var(--muted)", "var(--paper)", "var(--muted)", "var(--paper)",
    ]  # fmt: skip
    zero = found[-1][0]
    assert found[0][0] - zero == pytest.approx(zero - found[1][0])
    assert found[0][0] > zero
    text = drawing.to_svg()
    assert "+5.0* (+2.0 to +8.0)" in text
    assert "(no test)" in text
    assert "<title>open: +1.0 (−2.0 to +4.0)</title>" in text
    assert drawing.title == "A minus B, in points"


def test_forest__no_difference_at_all_and_long_hostile_names() -> None:
    drawing = forest([Difference("<b>" * 40, 0.0, 0.0, 0.0)], first="x" * 90, second="<i>")
    text = drawing.to_svg()
    assert "<b>" not in text
    assert "…" in text
    ET.fromstring(text)
