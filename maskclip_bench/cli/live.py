"""Bars at the bottom of the terminal, with lines that scroll above them and none of them lost.

rich refreshes bars in a thread of its own. Between a printed line's "move up n lines" and its text,
such a refresh may change n, and a line is overwritten. Here every write of the console, whoever
makes it, is one piece under the console's lock, and that lock is always taken first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from rich.console import RenderableType
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from maskclip_bench.cli.options import SafeConsole

REFRESH_SECONDS = 0.25


class LiveBars(Progress):
    """rich's `Progress` on a `SafeConsole`; off where nobody watches (no terminal).

    The same console must be used for all that is printed meanwhile, logs included.

    Attributes:
        footer: Text below the bars.
    """

    def __init__(
        self,
        *columns: str | ProgressColumn,
        console: SafeConsole,
        enabled: bool = True,
        transient: bool = True,
    ) -> None:
        self.footer = ""
        super().__init__(
            *columns,
            console=console,
            auto_refresh=False,
            transient=transient,
            disable=not (enabled and console.is_terminal),
        )
        self._whole = console.whole
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="bars", daemon=True)

    def start(self) -> None:
        """Show the bars."""
        with self._whole:
            super().start()
        if not self.disable:
            self._ticker.start()

    def stop(self) -> None:
        """Remove the bars."""
        self._ended.set()
        with self._whole:
            super().stop()

    def refresh(self) -> None:
        """Draw the bars as they are now."""
        with self._whole:
            super().refresh()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, and the footer."""
        yield from super().get_renderables()
        if self.footer:
            yield Text(self.footer, style="dim")

    def _tick(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            try:
                self.refresh()
            except OSError:  # the terminal is gone
                return


class LabelColumn(ProgressColumn):
    """A task's description and note, cut at the end of the line: a bar is always one line high."""

    def __init__(self, console: SafeConsole, *, left_of_it: int) -> None:
        super().__init__()
        self._console = console
        self._left_of_it = left_of_it

    def render(self, task: Task) -> Text:
        """The text as wide as the terminal leaves room for."""
        text = Text.from_markup(task.description)
        note = task.fields.get("note", "")
        if note:
            text.append_text(Text.from_markup(f"  [dim]{note}[/]"))
        text.no_wrap = True
        text.truncate(max(8, self._console.width - self._left_of_it), overflow="ellipsis")
        return text
