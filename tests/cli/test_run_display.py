"""The display of a run, on something that is no terminal."""

from __future__ import annotations

import io
import os
import signal

import pytest

from maskclip_bench.cli import run_display
from maskclip_bench.cli.options import SafeConsole
from maskclip_bench.cli.run_display import RunDisplay
from maskclip_bench.progress import Unit


def test_display__lines_for_start_and_end_and_hostile_names() -> None:
    output = SafeConsole(file=io.StringIO(), width=200)
    unit = Unit("a", "x[/bold]\x1b[31m", 2.0)
    with RunDisplay(output) as display:
        display.planned([unit])
        display.started(unit)
        display.advanced(unit, "[red]features", 1, 2)
        display.advanced(Unit("other", "not started", 1.0), "stage", 1, 0)
        display.finished(unit, ok=False, note="ValueError: [/]")
        display.finished(Unit("never", "never started", 1.0), ok=True, note="")
    text: str = output.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text
    assert "start  x[/bold]" in text
    assert "FAIL   x[/bold]" in text
    assert "ValueError: [/]" in text
    assert "done   never started" in text


def text_of(output: SafeConsole) -> str:
    text: str = output.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_display__one_reason_is_said_once() -> None:
    output = SafeConsole(file=io.StringIO(), width=200)
    units = [Unit(str(number), f"cell {number}", 1.0) for number in range(3)]
    with RunDisplay(output) as display:
        display.planned(units)
        for unit in units:
            display.started(unit)
            display.finished(unit, ok=False, note="CheckpointError: no weights")
    assert text_of(output).count("no weights") == 1
    assert text_of(output).count("for the same reason as above") == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_display__what_begins_in_two_parts_is_shown_once(terminal: bool) -> None:
    output = SafeConsole(file=io.StringIO(), width=200, force_terminal=terminal)
    unit = Unit("a", "cell a", 1.0)
    with RunDisplay(output) as display:
        display.planned([unit])
        display.started(unit)
        display.started(unit)
        bars = len(display._progress.tasks)
        display.finished(unit, ok=True, note="")
        assert (bars, len(display._progress.tasks)) == ((2, 1) if terminal else (1, 1))
    if not terminal:
        assert text_of(output).count("start  cell a") == 1


def test_display__no_brackets_where_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_display, "LINE_EVERY_SECONDS", -1.0)
    output = SafeConsole(file=io.StringIO(), width=200)
    unit = Unit("a", "the cell", 1.0)
    with RunDisplay(output) as display:
        display.planned([unit])
        display.started(unit)
        display.advanced(unit, "features", 1, 2)
        assert "(the cell 50 %)" in text_of(output)
        display.finished(unit, ok=True, note="")
    assert "()" not in text_of(output)


def test_interrupt__is_answered_at_once_and_the_second_one_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    output = SafeConsole(file=io.StringIO(), width=200)
    before = signal.getsignal(signal.SIGINT)
    with RunDisplay(output) as display:
        unit = Unit("a", "pretraining a[b]", 1.0)
        display.planned([unit])
        display.started(unit)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert "Stopping. Waiting for: pretraining a[b]." in text_of(output)
        assert codes == []
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert codes == [130]
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupt__nothing_runs() -> None:
    output = SafeConsole(file=io.StringIO(), width=200)
    with RunDisplay(output), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert "Waiting for" not in text_of(output)


def test_display__what_is_planned_later_counts_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_display, "LINE_EVERY_SECONDS", -1.0)
    output = SafeConsole(file=io.StringIO(), width=200)
    first, second = Unit("a", "first part", 10.0), Unit("b", "second part", 10.0)
    with RunDisplay(output) as display:
        for unit in (first, second):
            display.planned([unit])
            display.started(unit)
            display.advanced(unit, "features", 1, 2)
            assert " 50 %  " in text_of(output).splitlines()[-1]
            display.finished(unit, ok=True, note="")
            assert "100 %  " in text_of(output).splitlines()[-1]
    assert "-" not in text_of(output)
