from __future__ import annotations

from maskclip_bench.results.text_view import html_table, text_table

HOSTILE = "<b>\x1b[31m[/bold]"


def test_text_table__lines_and_a_title() -> None:
    lines = text_table("T", ("name", "value"), [("a", "1.0"), ("b", "20.0")]).splitlines()
    assert [line.split() for line in lines] == [
        ["T"],
        ["name", "value"],
        ["a", "1.0"],
        ["b", "20.0"],
    ]


def test_tables__text_stays_text() -> None:
    text = text_table(HOSTILE, (HOSTILE,), [(HOSTILE,)])
    assert "\x1b" not in text
    assert text.count("[/bold]") == 3
    page = html_table(HOSTILE, (HOSTILE,), [(HOSTILE,)])
    assert "<b>" not in page
    assert page.startswith("<table><caption>")
    assert "<caption>" not in html_table("", ("a",), [])
