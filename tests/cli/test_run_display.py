"""The display of a run, on something that is no terminal."""

from __future__ import annotations

import io

from rich.console import Console

from maskclip_bench.cli.run_display import RunDisplay
from maskclip_bench.progress import Unit


def test_display__lines_for_start_and_end_and_hostile_names() -> None:
    output = Console(file=io.StringIO(), width=200)
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
