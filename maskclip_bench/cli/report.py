"""`maskclip-bench report` and `show`: a page of tables, comparisons and pictures; one picture."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from maskclip_bench.cli.options import DeviceOption, WorkspaceOption, console
from maskclip_bench.errors import ConfigError, MaskCLIPBenchError
from maskclip_bench.escaping import markup
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from maskclip_bench.results.table_model import Table
    from maskclip_bench.tasks.suite import SuiteDeclaration

OUTPUT = "report"


def report(
    suite: Annotated[
        str | None,
        typer.Option("--suite", "-s", help="Rows, columns and tables of a suite."),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", "-b", help="Only this row; the first one is the baseline."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="Only this column, protocol/dataset; either may be *."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the report; default: the workspace's."),
    ] = None,
    records: Annotated[
        Path | None, typer.Option("--records", help="Folder of records; default: the workspace's.")
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Run the models for pictures of what they see; those in the folder are kept.",
        ),
    ] = True,
    title: Annotated[str | None, typer.Option("--title", help="Heading of the page.")] = None,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Make a page of recorded cells: tables, comparisons, curves, and what the models see.

    One folder that opens from disk and needs no network. Everything recorded is shown if neither a
    suite nor a row or column is named.

    For example:

        maskclip-bench report --suite all -o report

        maskclip-bench report -b clip_vit-demo_demo -b maskclip_vit-demo_demo -t "*/demo_objects"
    """
    from maskclip_bench.cli.data import bars
    from maskclip_bench.report.build import build
    from maskclip_bench.report.looking import has_torch
    from maskclip_bench.tasks.suite import load_suite

    opened = Workspace.open(workspace)
    target = "cpu"
    if pictures and has_torch():
        from maskclip_bench.runtime import resolve_device

        target = str(resolve_device(device))
    with bars() as progress:
        page = build(
            output or opened.root / OUTPUT,
            records=records or opened.records,
            workspace=opened,
            suite=load_suite(suite) if suite else None,
            backbones=backbone or [],
            tasks=[_whole(pattern) for pattern in task or []],
            title=title,
            pictures="make" if pictures else "keep",
            device=target,
            progress=progress,
        )
    console().print(f"report: {markup(page)}", soft_wrap=True)


def report_of_run(
    name: str,
    suite: SuiteDeclaration,
    workspace: Workspace,
    tables: Mapping[str, Table],
    output: Console,
) -> None:
    """Bring the workspace's report up to date after a run of a suite, and say where it is.

    No model is run for it: the command that adds what models see is named. A run never ends with
    an error because of its report.

    Args:
        name: Of the suite, for the command.
        suite: What was run.
        workspace: Where it ran.
        tables: The suite's tables, filled.
        output: Where the lines go.
    """
    from maskclip_bench.cli.data import bars
    from maskclip_bench.report.build import build

    folder = workspace.root / OUTPUT
    try:
        with bars() as progress:
            page = build(
                folder,
                records=workspace.records,
                workspace=workspace,
                suite=suite,
                tables=tables,
                pictures="keep",
                progress=progress,
            )
    except MaskCLIPBenchError as error:
        output.print(f"[yellow]No report[/]: {markup(error)}", soft_wrap=True)
        return
    command = f"maskclip-bench report --suite {shlex.quote(name)}"
    if workspace.root != Workspace.open().root:
        command += f" -w {shlex.quote(str(workspace.root))}"
    output.print(f"report: {markup(page)}", soft_wrap=True)
    output.print(f"Type next, to add what the models see: {markup(command)}", soft_wrap=True)


def _whole(pattern: str) -> str:
    """A pattern of one part as `run` reads it; one with both parts as it is."""
    if "/" in pattern:
        return pattern
    from maskclip_bench.tasks.plan import whole_pattern

    return whole_pattern(pattern)


def show(
    what: Annotated[
        str,
        typer.Argument(help="A cell, row/protocol/data set (row/* for all of a row); or an image."),
    ],
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", "-b", help="For an image: the models that look at it."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.")] = Path(
        "pictures"
    ),
    form: Annotated[str, typer.Option("--format", "-f", help="png or svg.")] = "png",
    tiles: Annotated[
        int, typer.Option("--tiles", min=1, help="For an image: windows along a side.")
    ] = 1,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw the pictures of one cell, or what models see on one image, as single files.

    For example:

        maskclip-bench show clip_vit-demo_demo/knn/demo_objects

        maskclip-bench show photo.jpg -b openai_vit-b-16 -b timm:vit_base_patch16_224.mae
    """
    from maskclip_bench.report.show import show_cells, show_image

    if form not in ("png", "svg"):
        raise ConfigError(f"--format {form!r} is not known. Use png or svg.")
    opened = Workspace.open(workspace)
    path = Path(what).expanduser()
    if path.is_file():
        from maskclip_bench.runtime import resolve_device

        if not backbone:
            raise ConfigError(
                "Say which models look at the image: --backbone NAME (repeat for more); see: "
                "maskclip-bench list backbones"
            )
        files = show_image(
            path,
            backbone,
            opened,
            output,
            suffix=f".{form}",
            tiles=tiles,
            device=str(resolve_device(device)),
        )
    else:
        files = show_cells(what, opened, output, suffix=f".{form}")
    for file in files:
        console().print(f"wrote {markup(file)}", soft_wrap=True)
