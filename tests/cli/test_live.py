"""Bars and lines on a terminal: every line stays, whole, whoever prints while bars are drawn."""

from __future__ import annotations

import io
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import pytest
from packaging.version import Version
from rich.logging import RichHandler
from rich.progress import BarColumn

from maskclip_bench.cli.live import LabelColumn, LiveBars
from maskclip_bench.cli.options import SafeConsole


def terminal(width: int = 60) -> SafeConsole:
    return SafeConsole(
        file=io.StringIO(), force_terminal=True, width=width, height=20, _environ={"TERM": "xterm"}
    )


def screen(console: SafeConsole, rows: int = 2000) -> list[str]:
    """What a terminal shows of the output: text, line feeds, cursor up, erased lines."""
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [""] * rows
    row = 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", text):
        if part == "\n":
            row += 1
        elif re.fullmatch(r"\x1b\[\d*A", part):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return lines


def test_lines_of_many_threads_survive_while_bars_come_and_go() -> None:
    console = terminal()
    with LiveBars(BarColumn(10), LabelColumn(console, left_of_it=12), console=console) as bars:
        barrier = threading.Barrier(4)

        def work(number: int) -> None:
            barrier.wait()
            for turn in range(25):
                bar = bars.add_task(f"bar {number} {turn}", total=1.0, note="")
                bars.refresh()
                bars.remove_task(bar)
                console.print(f"line {number} {turn}")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    shown = {line.strip() for line in screen(console)}
    assert {f"line {number} {turn}" for number in range(4) for turn in range(25)} <= shown


def test_a_line_of_the_log_scrolls_above_the_bars() -> None:
    console = terminal()
    logger = logging.getLogger("test_live")
    logger.propagate = False
    logger.addHandler(RichHandler(console=console, show_path=False, show_time=False))
    with LiveBars(BarColumn(10), LabelColumn(console, left_of_it=12), console=console) as bars:
        bars.add_task("the bar", total=1.0, note="")
        bars.refresh()
        logger.warning("from the log")
        bars.refresh()
    (line,) = [line for line in screen(console) if "from the log" in line]
    assert "the bar" not in line
    assert "━" not in line


def test_label__is_cut_and_moves_nothing() -> None:
    console = terminal(40)
    with LiveBars(BarColumn(10), LabelColumn(console, left_of_it=12), console=console) as bars:
        bars.add_task("short", total=1.0, note="")
        bars.add_task("long " * 20, total=1.0, note="\\[/]")
        bars.refresh()
        drawn = [line for line in screen(console) if line.strip()]
        (short,) = [line for line in drawn if "short" in line]
        (long,) = [line for line in drawn if "long" in line]
        assert short.index("short") == long.index("long") == 11
        assert len(long.rstrip()) <= 40
        assert long.rstrip().endswith("…")
    assert not any("short" in line for line in screen(console))


def test_footer__below_the_bars() -> None:
    console = terminal()
    with LiveBars(BarColumn(10), console=console, transient=False) as bars:
        bars.add_task("", total=1.0)
        bars.footer = "loss 1.0"
        bars.refresh()
    assert "loss 1.0" in [line.strip() for line in screen(console)]


def test_without_a_terminal__nothing() -> None:
    console = SafeConsole(file=io.StringIO())
    with LiveBars(BarColumn(10), console=console) as bars:
        bars.add_task("x", total=1.0)
        bars.refresh()
    older = Version(version("rich")) < Version("14.3")  # ends with an empty line
    assert console.file.getvalue() == ("\n" if older else "")  # type: ignore[attr-defined]


def test_a_terminal_that_is_gone_ends_the_ticker(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = LiveBars(BarColumn(10), console=terminal())

    def gone() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("maskclip_bench.cli.live.REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(bars, "refresh", gone)
    thread = threading.Thread(target=bars._tick)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
