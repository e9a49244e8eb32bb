"""`maskclip-bench data list` and `convert`; what the other commands on data share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeRemainingColumn

from maskclip_bench.cli.listing import Listing
from maskclip_bench.cli.live import LabelColumn, LiveBars
from maskclip_bench.cli.options import WorkspaceOption, console
from maskclip_bench.errors import unknown_name
from maskclip_bench.escaping import markup
from maskclip_bench.runtime import Workspace

data_app = typer.Typer(
    help="Data sets: list, fetch, check and look at them; make the demo world.",
    no_args_is_help=True,
)


@data_app.command("list")
def list_data(workspace: WorkspaceOption = None) -> None:
    """List the data sets of all tasks: those on this machine, then how to get the others."""
    from maskclip_bench.tasks.declaration import (
        TaskDeclaration,
        data_available,
        dataset_names,
        load_task_declaration,
    )

    opened = Workspace.open(workspace)

    def row(task: TaskDeclaration) -> tuple[str, str, str]:
        available = data_available(task, opened)
        return task.world, "yes" if available else "no", "" if available else task.obtain

    listing = Listing(("data set", "world", "on this machine", "how to get it"))
    listing.fill(dataset_names(), load_task_declaration, row)
    listing.put_first(2, "yes")
    listing.show(f"Data root: {opened.data} (set MASKCLIP_BENCH_DATA to use another)")


@data_app.command("convert")
def convert(
    name: Annotated[str, typer.Argument(help="What to convert: yfcc15m.")],
    metadata: Annotated[Path, typer.Argument(help="SLIP's metadata pickle, yfcc15m.pkl.")],
    output: Annotated[Path, typer.Argument(help="The Parquet table to write.")],
    images: Annotated[
        str, typer.Option("--images", help="Folder of the zip archives below images_root.")
    ] = "images",
) -> None:
    """Turn SLIP's YFCC15M metadata into a Parquet table that recipes read.

    No code of the pickle is run: only tuples, lists, numbers and texts are read from it.
    """
    from maskclip_bench.data.yfcc import convert_metadata

    if name != "yfcc15m":
        raise unknown_name("conversion", name, ["yfcc15m"], remedy="See --help.")
    with bars() as report:
        rows = convert_metadata(metadata, output, images=images, progress=report)
    console().print(f"Wrote {rows:,} rows to {output}", markup=False)


def prepare_with_bar(workspace: Workspace) -> Path:
    """Make the demo world with a progress bar on stderr; returns its folder."""
    from maskclip_bench.data.demo import prepare_demo

    with bars() as report:
        return prepare_demo(workspace.data, progress=report)


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr for each stage that is reported."""
    messages = console(stderr=True)
    with LiveBars(
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        LabelColumn(messages, left_of_it=55),
        console=messages,
    ) as progress:
        shown: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                shown[stage] = progress.add_task(markup(stage), total=total)
            progress.update(shown[stage], completed=done, total=total)

        yield report
