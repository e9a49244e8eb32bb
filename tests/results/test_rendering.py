from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from maskclip_bench.results.cell_text import EMPTY_TEXT
from maskclip_bench.results.picture import to_picture, to_png
from maskclip_bench.results.table_html import to_html
from maskclip_bench.results.table_latex import to_latex
from maskclip_bench.results.tables import (
    ColumnDeclaration,
    Table,
    TableCell,
    TableRow,
    to_csv,
    to_json,
    to_markdown,
    to_terminal,
)
from tests.results.latex_checker import check_latex

COLUMNS = (
    ColumnDeclaration(group="Zero-shot", title="val", task="a/b", metric="m"),
    ColumnDeclaration(group="Zero-shot", title="unseen", task="a/c", metric="m"),
    ColumnDeclaration(group="Retrieval", title="I→T\nR@1", task="r/d", metric="m", decimals=2),
)


def example(*, columns: tuple[ColumnDeclaration, ...] = COLUMNS) -> Table:
    base = TableRow(
        "CLIP",
        "equal pairs",
        (
            TableCell("synthetic", 0.276, 0.028, 1),
            TableCell("synthetic", 0.225, 0.027, 1, second=True),
            TableCell("failed", error="RuntimeError: x"),
        ),
    )
    ours = TableRow(
        "MaskCLIP",
        "equal pairs",
        (
            TableCell(
                "synthetic",
                0.312,
                0.029,
                1,
                0.036,
                (0.01, 0.06),
                p_value=0.001,
                adjusted_p_value=0.002,
                covers="samples",
                best=True,
            ),
            TableCell("synthetic", 0.221, 0.026, 1, -0.004, (-0.03, 0.02)),
            TableCell("missing"),
        ),
    )
    published = TableRow("Their|CLIP", "theirs", (TableCell("published", 0.3),) * 3)
    return Table("A title", "A caption.", "demo", columns, (base, ours, published), ("A * note.",))


def test_markdown__exactly() -> None:
    assert to_markdown(example()).splitlines() == [
        "### A title",
        "",
        "| | Zero-shot<br>val | Zero-shot<br>unseen | Retrieval<br>I→T<br>R@1 |",
        "| :-- | :-: | :-: | :-: |",
        "| *equal pairs* | | | |",
        "| CLIP | 27.6 <sub>±2.8</sub> | <ins>22.5</ins> <sub>±2.7</sub> | failed |",
        "| MaskCLIP | **31.2** <sub>±2.9 (+3.6\\*)</sub> | 22.1 <sub>±2.6 (−0.4)</sub> | - |",
        "| *theirs* | | | |",
        "| Their\\|CLIP † | 30.0† | 30.0† | 30.00† |",
        "",
        "A caption.  ",
        "A \\* note.  ",
    ]


def render(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(to_terminal(table, width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_csv__one_line_a_cell() -> None:
    frame = pd.read_csv(io.StringIO(to_csv(example())))
    assert len(frame) == 9
    cell = frame[(frame.row == "MaskCLIP") & (frame.column == "Zero-shot val")].iloc[0]
    assert (cell.percent, cell.half_width, cell.difference) == (31.2, 2.9, 3.6)
    assert (cell.difference_low, cell.difference_high) == (1.0, 6.0)
    assert (cell.p_value, cell.adjusted_p_value, cell.covers) == (0.001, 0.002, "samples")
    assert bool(cell.best)
    assert not bool(cell.second)
    assert list(frame.group.unique()) == ["equal pairs", "theirs"]
    assert frame[frame.origin == "failed"].percent.isna().all()


def test_json__the_whole_table() -> None:
    values = json.loads(to_json(example()))
    assert values["title"] == "A title"
    assert [column["group"] for column in values["columns"]] == ["Zero-shot"] * 2 + ["Retrieval"]
    assert [(row["name"], row["group"]) for row in values["rows"]] == [
        ("CLIP", "equal pairs"),
        ("MaskCLIP", "equal pairs"),
        ("Their|CLIP", "theirs"),
    ]
    cell = values["rows"][1]["cells"][0]
    assert (cell["value"], cell["difference"], cell["difference_low"]) == (0.312, 0.036, 0.01)
    assert cell["clear"]
    assert cell["best"]
    assert values["rows"][2]["published"]
    assert values["rows"][0]["cells"][2] == {
        **values["rows"][1]["cells"][2],
        "origin": "failed",
        "error": "RuntimeError: x",
    }
    assert values["notes"] == ["A * note."]


@pytest.mark.parametrize("empty", [Table("Empty", "", "demo", (), (), ("A note.",))])
def test_empty_table__says_so(empty: Table, tmp_path: Path) -> None:
    assert EMPTY_TEXT in to_markdown(empty)
    assert EMPTY_TEXT in render(empty, 80)
    to_png(empty, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


HOSTILE = [
    "x[/bold]",
    "[link=https://evil.example]x[/]",
    "\x1b[31mred",
    "\x1b]8;;https://evil.example\x07x",
    "a\rb\nc",
    "abc\u202egnp",
    "=1+1",
    "a|b",
    "[x](javascript:alert(1))",
    "<script>alert(1)</script>",
    "name\udcff",
]


def hostile_table(text: str) -> Table:
    column = ColumnDeclaration(group=text, title=text, task="a/b", metric="m")
    row = TableRow(text, text, (TableCell("synthetic", 0.5, 0.1, 1),))
    return Table(text, text, "demo", (column,), (row,), (text,))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text__stays_text_in_every_format(text: str, tmp_path: Path) -> None:
    table = hostile_table(text)
    texts = (to_markdown(table), to_csv(table), to_json(table), to_html(table), to_latex(table))
    for shown in (render(table, 100), *texts):
        shown.encode()
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)
    markdown = to_markdown(table)
    assert "<script" not in markdown
    assert "](java" not in markdown.replace("\\](", "")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {3}
    frame = pd.read_csv(io.StringIO(to_csv(table)))
    assert len(frame) == 1
    assert not str(frame.row.iloc[0]).startswith("=")
    assert not re.search(r"<(script|img|b)\b", to_html(table))
    assert json.loads(to_json(table))["rows"][0]["name"] == text
    check_latex(to_latex(table))
    for kind in ("png", "svg", "pdf"):
        to_picture(table, tmp_path / kind, kind)
    assert "<script" not in (tmp_path / "svg").read_text()


def test_hostile_text__rich_markup_is_printed_as_it_is() -> None:
    assert "x[/bold]" in render(hostile_table("x[/bold]"), 80)


def test_published__never_looks_like_measured() -> None:
    measured, published = (
        Table("T", "", "real", COLUMNS[:1], (TableRow("A", "", (TableCell(origin, 0.5),)),), ())
        for origin in ("measured", "published")
    )
    for show in (to_markdown, to_csv, lambda table: render(table, 60)):
        assert show(measured) != show(published)
    assert "50.0†" in to_markdown(published)
    assert "50.0†" in render(published, 60)
