from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from maskclip_bench.results.cell_text import EMPTY_TEXT
from maskclip_bench.results.table_html import to_html
from maskclip_bench.results.tables import Table
from tests.results.test_rendering import HOSTILE, example, hostile_table

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks that every element is closed, and keeps the rows of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[int]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(int(dict(attrs).get("colspan") or 1))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_html__is_a_whole_page_that_asks_for_nothing() -> None:
    text = to_html(example())
    reader = read(text)
    assert text.startswith("<!doctype html>\n<html lang")
    tags = {tag for tag, _ in reader.attributes}
    assert not tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"(src|href|url)\s*[=(]", text)
    assert "default-src &#x27;none&#x27;" in text


def test_html__every_row_has_all_columns_and_headers_say_of_what() -> None:
    reader = read(to_html(example()))
    assert {sum(row) for row in reader.rows} == {4}
    scopes = [values["scope"] for tag, values in reader.attributes if tag == "th"]
    assert scopes.count("colgroup") == 2
    assert scopes.count("col") == 3
    assert scopes.count("rowgroup") == 2
    assert scopes.count("row") == 3
    assert [tag for tag, _ in reader.attributes].count("tbody") == 2
    assert [tag for tag, _ in reader.attributes].count("caption") == 1


def test_html__marks_are_said() -> None:
    text = to_html(example())
    assert '<strong>31.2</strong><span class="said"> (best)</span>' in text
    assert '<u>22.5</u><span class="said"> (second best)</span>' in text
    assert '<td title="RuntimeError: x">failed</td>' in text
    assert '<small class="up">+3.6*</small>' in text
    assert '<small class="open">−0.4</small>' in text


def test_html__as_a_part_of_another_page() -> None:
    part = to_html(example(), page=False)
    assert part.startswith('<div class="mcb">')
    assert "<style" not in part
    read(part)


@pytest.mark.parametrize("text", HOSTILE)
def test_html__hostile_text_is_text(text: str) -> None:
    reader = read(to_html(hostile_table(text)))
    tags = {tag for tag, _ in reader.attributes}
    assert not tags & {"script", "img", "a", "b"}


def test_html__of_an_empty_table() -> None:
    text = to_html(Table("Empty", "", "demo", (), (), ()))
    assert EMPTY_TEXT in text
    assert "<table" not in text
    read(text)
