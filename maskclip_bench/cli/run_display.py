"""One live display for a whole run: a bar for all of it, a line for each thing under way.

On a terminal it redraws; elsewhere (a log file, CI) it prints a line when something starts or
ends, and one with the time left every half minute. Ctrl-C is answered at once: it says what the
run is waiting for, and a second one ends it there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType, TracebackType

from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn

from maskclip_bench.cli.live import LabelColumn, LiveBars
from maskclip_bench.cli.options import SafeConsole
from maskclip_bench.errors import EXIT_INTERRUPTED
from maskclip_bench.escaping import markup
from maskclip_bench.progress import Unit

LINE_EVERY_SECONDS = 30.0

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

BAR_WIDTH = 28
LEFT_OF_LABEL = BAR_WIDTH + 1 + 6 + 1 + 7 + 1
"""Columns of a bar, its percentage, its time, and the spaces between them."""


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

    def __init__(self, console: SafeConsole) -> None:
        self._console = console
        self._lock = threading.RLock()
        self._active: dict[str, _Active] = {}
        self._finished: dict[str, float] = {}
        self._failures: set[str] = set()
        self._total = 0.0
        self._began = self._started = time.monotonic()  # of all, of what is planned
        self._last_line = 0.0
        self._stopping = False
        self._restore = contextlib.ExitStack()
        # What has a fixed width is on the left, so that a longer label moves nothing sideways.
        self._progress = LiveBars(
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.percentage:>4.0f} %"),
            TimeElapsedColumn(),
            LabelColumn(console, left_of_it=LEFT_OF_LABEL),
            console=console,
        )
        self._overall = self._progress.add_task("[bold]all[/]", total=1.0, note="")

    def __enter__(self) -> RunDisplay:
        self._restore.enter_context(self._signals())
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._restore.close()

    def planned(self, units: list[Unit]) -> None:
        """All that the run will do; again where what follows is known only later."""
        with self._lock:
            self._total = sum(unit.expected_seconds for unit in units)
            self._finished.clear()
            self._started = time.monotonic()

    def started(self, unit: Unit) -> None:
        """A unit begins; said once, though a part of it may have begun before."""
        with self._lock:
            if unit.key in self._active:
                return
            active = _Active(unit)
            if self._console.is_terminal:
                active.bar = self._progress.add_task(markup(unit.label), total=1.0, note="starting")
            else:
                self._print(f"{self._clock()}  start  {markup(unit.label)}")
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
        """A unit ended; `note` is its score or what went wrong, in a few words.

        What went wrong with several units is said once.
        """
        with self._lock:
            active = self._active.pop(unit.key, None)
            self._finished[unit.key] = unit.expected_seconds
            if active is not None and active.bar is not None:
                self._progress.remove_task(active.bar)
            seconds = time.monotonic() - active.started if active else 0.0
            mark = "[green]done [/]" if ok else "[red]FAIL [/]"
            if not ok and note in self._failures:
                note = "for the same reason as above"
            elif not ok:
                self._failures.add(note)
            self._print(
                f"{self._clock()}  {mark}  {markup(unit.label)}  "
                f"[dim]{seconds:.0f} s[/]  {markup(note)}"
            )
            self._refresh()

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=not self._console.is_terminal)

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
            also = f"  ({running})" if running else ""
            self._print(f"{self._clock()}  {100 * fraction:3.0f} %  {note}{also}")

    def _time_left(self, fraction: float) -> str:
        elapsed = time.monotonic() - self._started
        if fraction < 0.02 or elapsed < 5:
            return "estimating the time left"
        left = elapsed * (1 - fraction) / fraction
        return f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"[dim]{minutes:3d}:{seconds:02d}[/]"

    # Stopping.

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Answer the signals that stop a run, in the main thread; put the old handlers back."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
        before = {each: signal.getsignal(each) for each in numbers}
        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):  # nohup ignores SIGHUP
                signal.signal(number, self._stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """Say what the run waits for, and stop; the second time, end this process.

        Records, checkpoints and weights appear whole or not at all, so ending at once is safe; jobs
        notice that their run is gone. Only the console's lock is taken: what is interrupted may
        hold another.
        """
        if self._stopping:
            self._console.print("Ended. The same command goes on where this one was.")
            os._exit(EXIT_INTERRUPTED)
        self._stopping = True
        running = [active.unit.label for active in list(self._active.values())]
        waits = f" Waiting for: {'; '.join(running)}." if running else ""
        self._console.print(
            f"[yellow]Stopping.[/]{markup(waits)} What is done is kept. "
            "Ctrl-C again ends without waiting."
        )
        raise KeyboardInterrupt
