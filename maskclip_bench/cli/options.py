"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from maskclip_bench.escaping import one_line, visible

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        help="Folder for everything a run makes: data, checkpoints, features, records, tables.",
        envvar="MASKCLIP_BENCH_WORKSPACE",
        show_default="./workspace",
    ),
]

DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1...", show_default=True)
]


class SafeConsole(Console):
    """A console on which text never acts: what is no visible character is written out.

    Names, labels and messages come from files and from other libraries; an escape sequence in one
    would otherwise change colours, titles or lines of the terminal. Square brackets are the
    caller's to escape (`escaping.markup`), or to print with `markup=False`.

    A line, or a refresh of bars (`live.py`), is written in one piece.

    Attributes:
        whole: The lock under which one piece is written; taken before any lock of rich.
    """

    def __init__(self, **options: Any) -> None:
        self.whole = threading.RLock()
        super().__init__(**options)

    def __enter__(self) -> SafeConsole:
        self.whole.acquire()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
        finally:
            self.whole.release()

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does, with every piece of text made visible."""
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else visible(segment.text)
            yield segment if shown == segment.text else Segment(shown, segment.style)


_messages: SafeConsole | None = None


def console(*, stderr: bool = False) -> SafeConsole:
    """Where results go (stdout), or progress, logs and errors (stderr).

    There is one console for stderr, so that a line of the log scrolls above the bars.
    """
    global _messages
    if not stderr:
        return SafeConsole(highlight=False)
    if _messages is None:
        _messages = SafeConsole(highlight=False, stderr=True)
    return _messages


def forget_console() -> None:
    """Let the next console for stderr look at the terminal again (another command begins)."""
    global _messages
    _messages = None


def plain_table(*columns: str) -> Table:
    """A table without lines, whose cells fold."""
    view = Table(box=None, pad_edge=False)
    for column in columns:
        view.add_column(column, overflow="fold")
    return view


def add_line(view: Table, *cells: object) -> None:
    """Add a line of cells that are text, in which brackets are brackets."""
    view.add_row(*(Text(one_line(cell)) for cell in cells))
