from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from maskclip_bench.results import picture
from maskclip_bench.results.picture import to_picture, to_png
from maskclip_bench.results.reference import load_references
from maskclip_bench.results.tables import (
    build_table,
    load_table,
)
from tests.results.test_rendering import example


def test_png__has_the_size_of_its_content(tmp_path: Path) -> None:
    to_png(example(), tmp_path / "a.png")
    to_png(build_table(load_table("imagenet"), references=load_references()), tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as small, Image.open(tmp_path / "b.png") as large:
        assert small.size[0] > 500
        assert large.size[1] > small.size[1]
        assert small.convert("L").getextrema() == (small.convert("L").getextrema()[0], 255)


def test_png__same_bytes_twice(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        to_png(example(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_png__many_columns_stand_upright(tmp_path: Path) -> None:
    table = build_table(load_table("zero_shot_suite"), references=load_references())
    to_png(table, tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.png") as image:
        assert image.size[0] < 3500


def test_png__notes_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = picture._note_lines(example(), 100.0)
    assert all(picture._text_width(line, picture.NOTE_SIZE) <= 100 for line in lines)
    assert " ".join(lines) == "A caption. A * note."


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_picture__same_bytes_twice_and_text_stays_text(
    tmp_path: Path, kind: Literal["svg", "pdf"]
) -> None:
    for name in ("a", "b"):
        to_picture(example(), tmp_path / name, kind)
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes()
    assert first.startswith(b"%PDF" if kind == "pdf" else b"<?xml")
    if kind == "svg":
        assert b">MaskCLIP<" in first


def test_picture__a_title_wider_than_the_table_is_broken_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    title = "word " * 60 + "w" * 200
    lines = picture._broken(title, 200.0, picture.TITLE_SIZE, bold=True)
    assert "".join(lines).replace(" ", "") == title.replace(" ", "")
    assert all(picture._text_width(line, picture.TITLE_SIZE, bold=True) <= 200 for line in lines)
    drawn: list[tuple[float, str, float]] = []
    table = replace(example(), title=title)

    class Pen(picture._Pen):
        def text(self, x: float, y: float, text: str, **style: Any) -> None:
            drawn.append((x, text, style["fontsize"]))
            super().text(x, y, text, **style)

        def figure(self, width: float, height: float) -> Any:
            bold = picture._text_width
            titles = [(x, t) for x, t, size in drawn if size == picture.TITLE_SIZE]
            assert len(titles) > 1
            for x, text in titles:
                assert x + bold(text, picture.TITLE_SIZE, bold=True) <= width
            return super().figure(width, height)

    monkeypatch.setattr(picture, "_Pen", Pen)
    picture._draw(table)
