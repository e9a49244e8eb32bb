from __future__ import annotations

import csv
import doctest
import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from maskclip_bench import escaping
from maskclip_bench.escaping import csv_cell, html, latex, markdown, markup, one_line, visible

HOSTILE = [
    "x[/bold]",
    "[link=https://evil.example]x[/link]",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;https://evil.example\x07x\x1b]8;;\x07",
    "\x9b31m",
    "a\rb",
    "a\nb",
    "a\x00b\x7f\x08",
    "abc\u202egnp.exe",
    "a\u2066b\u2069",
    "a\u200bb\ufeff",
    "a\u2028b",
    "name\udcff",
    "=HYPERLINK('x')",
    "@SUM(1)",
    "+1",
    "-1+2",
    "\t=1",
    "a|b",
    "[x](javascript:alert(1))",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/x.png)",
    "https://evil.example www.evil.example",
    "`code` **bold** _it_ ~~no~~ # title",
    "a\\",
    "\\input{/etc/passwd} $x$ % & # _ ^ ~ {",
    "&lt;b&gt;",
]


def test_examples() -> None:
    assert doctest.testmod(escaping).failed == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_visible__no_character_acts_and_all_can_be_encoded(text: str) -> None:
    shown = visible(text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", shown)
    shown.encode("utf-8")
    assert visible(shown) == shown
    assert "\n" not in one_line(text)


def test_visible__keeps_what_people_write() -> None:
    text = "Zoë, naïve café, 中文, हिन्दी, 👩\u200d🔬, I→T R@1, APᵇ\nnext"
    assert visible(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_markup__is_printed_as_it_is(text: str) -> None:
    output = io.StringIO()
    Console(file=output, width=200, force_terminal=False).print(f"[bold]{markup(text)}[/bold]")
    assert Text.from_markup(f"[bold]{markup(text)}[/]").plain == visible(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown__one_cell_without_link_html_or_emphasis(text: str) -> None:
    shown = markdown(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)(\\\\)*[|`*\[\]]", shown)
    assert "<" not in shown
    assert "https://" not in shown
    assert "www." not in shown


def test_markdown__leaves_names_readable() -> None:
    assert markdown("demo_objects (top-1), CLIP+MAE, 3.5") == "demo_objects (top-1), CLIP+MAE, 3.5"
    assert markdown("_it_ __b__") == r"\_it\_ \_\_b\_\_"
    assert markdown("# title") == r"\# title"
    assert markdown("1. item") == r"1\. item"
    assert markdown("===") == r"\==="
    assert markdown("- x") == r"\- x"
    assert markdown("+1.2") == "+1.2"


@pytest.mark.parametrize("text", HOSTILE)
def test_html__no_tag_and_no_open_attribute(text: str) -> None:
    assert not re.search(r"[<>\"']", html(text))


@pytest.mark.parametrize("before", ["", "\n", "\r\n ", "\u2028", "\xa0", "\t"])
def test_csv__no_formula_after_what_is_left_out(before: str) -> None:
    assert csv_cell(f"{before}=1+1").startswith("'")


@pytest.mark.parametrize("text", HOSTILE)
def test_csv__no_formula_whatever_stands_before(text: str) -> None:
    line = io.StringIO()
    csv.writer(line).writerow([csv_cell(text)])
    (cell,) = next(csv.reader(io.StringIO(line.getvalue())))
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("text", HOSTILE)
def test_latex__no_command_but_ours(text: str) -> None:
    known = r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar)\{\}"
    rest = re.sub(known + r"|\\textquotedbl\{\}|\\[{}$&#%_]", "", latex(text))
    assert not re.search(r"[\\{}$&#%_^~]", rest)
