"""One live display for a whole run: a bar for all of it, a line for each thing under way.

On a terminal it redraws; elsewhere (a log file, CI) it prints a line when something starts or
ends, and one with the time left every half minute.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from maskclip_bench.escaping import markup
from maskclip_bench.progress import Unit

LINE_EVERY_SECONDS = 30.0


@dataclass
class _Active:
    unit: Unit
    fraction: float = 0.0
    stage: str = ""
    started: float = field(default_factory=time.monotonic)
    bar: TaskID | None = None


class RunDisplay:
    """Shows a run (a `progress.Listener`); a context manager.

    The work of a unit is its expected seconds; what is left of a run is its work left, at the
    speed seen so far.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.RLock()
        self._active: dict[str, _Active] = {}
        self._finished: dict[str, float] = {}
        self._total = 0.0
        self._started = time.monotonic()
        self._last_line = 0.0
        self._progress = Progress(
            TextColumn("{task.description}", markup=True),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>4.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        self._overall = self._progress.add_task("[bold]all[/]", total=1.0, note="")

    def __enter__(self) -> RunDisplay:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def planned(self, units: list[Unit]) -> None:
        """All that the run will do."""
        with self._lock:
            self._total = sum(unit.expected_seconds for unit in units)
            self._started = time.monotonic()

    def started(self, unit: Unit) -> None:
        """A unit begins."""
        with self._lock:
            active = _Active(unit)
            if self._console.is_terminal:
                active.bar = self._progress.add_task(
                    f"  {markup(unit.label)}", total=1.0, note="starting"
                )
            else:
                self._console.print(f"{self._clock()}  start  {markup(unit.label)}")
            self._active[unit.key] = active

    def advanced(self, unit: Unit, stage: str, done: float, total: float) -> None:
        """A unit is `done` of `total` through its `stage`."""
        with self._lock:
            active = self._active.get(unit.key)
            if active is None:
                return
            active.stage = stage
            active.fraction = done / total if total else 0.0
            if active.bar is not None:
                self._progress.update(
                    active.bar, completed=min(1.0, active.fraction), note=markup(stage)
                )
            self._refresh()

    def finished(self, unit: Unit, *, ok: bool, note: str) -> None:
        """A unit ended; `note` is its score or what went wrong, in a few words."""
        with self._lock:
            active = self._active.pop(unit.key, None)
            self._finished[unit.key] = unit.expected_seconds
            if active is not None and active.bar is not None:
                self._progress.remove_task(active.bar)
            seconds = time.monotonic() - active.started if active else 0.0
            mark = "[green]done [/]" if ok else "[red]FAIL [/]"
            self._console.print(
                f"{self._clock()}  {mark}  {markup(unit.label)}  "
                f"[dim]{seconds:.0f} s[/]  {markup(note)}"
            )
            self._refresh()

    def _refresh(self) -> None:
        done = sum(self._finished.values()) + sum(
            active.unit.expected_seconds * min(1.0, active.fraction)
            for active in self._active.values()
        )
        fraction = done / self._total if self._total else 1.0
        note = self._time_left(fraction)
        self._progress.update(self._overall, completed=fraction, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > LINE_EVERY_SECONDS:
            self._last_line = now
            running = ", ".join(
                f"{markup(active.unit.label)} {100 * active.fraction:.0f} %"
                for active in self._active.values()
            )
            self._console.print(f"{self._clock()}  {100 * fraction:3.0f} %  {note}  ({running})")

    def _time_left(self, fraction: float) -> str:
        elapsed = time.monotonic() - self._started
        if fraction < 0.02 or elapsed < 5:
            return "estimating the time left"
        left = elapsed * (1 - fraction) / fraction
        return f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"[dim]{minutes:3d}:{seconds:02d}[/]"
