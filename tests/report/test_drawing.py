from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from maskclip_bench.errors import ConfigError, MissingDependencyError
from maskclip_bench.report.drawing import MARKERS, Drawing, series_role, text_width

HOSTILE = "</text><script>alert(1)</script>\x1b[31m\u202e"


def drawing(title: str = "A drawing") -> Drawing:
    made = Drawing(120, 80, title)
    made.rect(0, 0, 10, 20, fill="s0", opacity=0.5)
    made.line([(0, 0), (50, 40.25)], stroke="accent", dashed=True)
    for index, shape in enumerate(MARKERS):
        made.marker(10 * index, 60, shape=shape, fill="bad")
    made.text(5, 30, title, anchor="middle", bold=True)
    made.image(60, 10, 20, 20, Image.new("RGB", (2, 2), "red"))
    return made


def test_svg__is_xml_with_a_title() -> None:
    root = ET.fromstring(drawing().to_svg())
    assert root.attrib["aria-label"] == "A drawing"
    assert root.attrib["viewBox"] == "0 0 120 80"
    assert [child.tag.rpartition("}")[2] for child in root][:3] == ["title", "rect", "rect"]
    assert "#0072b2" in drawing().to_svg()


def test_svg__inside_a_page_colours_are_variables() -> None:
    text = drawing().to_svg(inline=True)
    assert "var(--s0)" in text
    assert "#0072b2" not in text


def test_svg__hostile_text_stays_text() -> None:
    text = drawing(HOSTILE).to_svg()
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    ET.fromstring(text)


def test_png__has_the_drawings_shape(tmp_path: Path) -> None:
    drawing(HOSTILE).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (240, 160)
        colours = picture.convert("RGB").getcolors(100_000)
    assert colours is not None
    assert len(colours) > 5


def test_save__svg(tmp_path: Path) -> None:
    drawing().save(tmp_path / "a.svg")
    ET.parse(tmp_path / "a.svg")


def test_save__another_suffix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither \.svg nor \.png"):
        drawing().save(tmp_path / "a.gif")


def test_png__without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingDependencyError, match=r"maskclip-bench\[pictures\]"):
        drawing().to_png()


def test_series_role__more_rows_than_colours() -> None:
    assert series_role(0) == series_role(8) == "s0"


def test_text_width__grows_with_text() -> None:
    assert text_width("ab", 10) == 2 * text_width("a", 10)
