"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from maskclip_bench.escaping import visible

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
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does, with every piece of text made visible."""
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else visible(segment.text)
            yield segment if shown == segment.text else Segment(shown, segment.style)


def console(*, stderr: bool = False) -> Console:
    """Where results go (stdout); progress and errors go to stderr."""
    return SafeConsole(highlight=False, stderr=stderr)
