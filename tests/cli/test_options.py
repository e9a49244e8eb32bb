from __future__ import annotations

import io

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from maskclip_bench.cli.options import SafeConsole, console

HOSTILE = "\x1b]8;;https://evil.example\x07x\x1b[2J\u202e\x9b31m"


def printed(*things: object, **options: object) -> str:
    output = io.StringIO()
    SafeConsole(file=output, width=200, highlight=False).print(*things, **options)  # type: ignore[arg-type]
    return output.getvalue()


@pytest.mark.parametrize("wrap", [True, False])
def test_console__text_never_acts(wrap: bool) -> None:
    table = Table("name", box=None)
    table.add_row(Text(HOSTILE))
    for thing in (HOSTILE, Text(HOSTILE), table):
        shown = printed(thing, soft_wrap=wrap)
        assert not set(shown) & set("\x1b\x07\x9b\u202e")
        assert r"\x1b]8;;https://evil.example" in shown


def test_console__a_bar_s_text_never_acts() -> None:
    output = io.StringIO()
    target = SafeConsole(file=output, width=100, force_terminal=True, color_system=None)
    with Progress(TextColumn("{task.description}", markup=False), console=target) as progress:
        progress.add_task("a\x07b\u202ec")
    assert "\x07" not in output.getvalue()
    assert "\u202e" not in output.getvalue()


def test_console__styles_still_act() -> None:
    output = io.StringIO()
    SafeConsole(file=output, force_terminal=True).print("[bold]x[/]")
    assert "\x1b[1mx" in output.getvalue()


def test_console__streams() -> None:
    assert console(stderr=True).stderr
    assert not console().stderr
