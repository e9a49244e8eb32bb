"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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


def console() -> Console:
    """Where results go (stdout); progress and errors go to stderr."""
    return Console(highlight=False)
