from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from maskclip_bench.results import picture
from maskclip_bench.results.picture import to_png
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
