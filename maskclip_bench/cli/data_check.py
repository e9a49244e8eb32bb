"""`maskclip-bench data prepare`, `check` and `show`: fetch a data set, examine it, look at it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from maskclip_bench import storage
from maskclip_bench.cli.data import bars, prepare_with_bar
from maskclip_bench.cli.options import WorkspaceOption, console
from maskclip_bench.errors import EXIT_DATA, DataError
from maskclip_bench.escaping import markup
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from maskclip_bench.tasks.data_check import Diagnosis

DEMO = "demo"
ALL = "all"
MARKS = {"error": "[red]error[/]", "warning": "[yellow]warning[/]", "note": "[green]ok[/]"}


def add_data_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `maskclip-bench data`."""
    app.command("prepare")(prepare)
    app.command("check")(check)
    app.command("show")(show)


def prepare(
    name: Annotated[
        str, typer.Argument(help="demo, a data set (see: data list), or hf:ORG/NAME of the hub.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say the size and fetch nothing.")
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make the demo world, or fetch a data set that torchvision or the Hugging Face hub has.

    Says first how large it is. Files are checked against their checksums where the source has
    them; after an interruption the same command goes on. Does nothing if it is complete.

    For example:

        maskclip-bench data prepare demo

        maskclip-bench data prepare cifar10
    """
    opened = Workspace.open(workspace)
    if name == DEMO:
        where = opened.data / DEMO if dry_run else prepare_with_bar(opened)
        console().print(f"The demo world is at {where}", markup=False)
        return
    from maskclip_bench.tasks.data_prepare import fetch, preparation
    from maskclip_bench.tasks.declaration import load_task_declaration

    task = load_task_declaration(name)
    plan = preparation(task, opened)
    if plan is None:
        console().print(f"{name} is on this machine, below {opened.data}.", markup=False)
        return
    size = "its size is not known" if plan.size is None else f"{plan.size / 1e6:,.0f} MB"
    console().print(f"{name}: {size}, from {plan.source}, to {plan.root}", markup=False)
    if dry_run:
        return
    with bars() as report:
        folder = fetch(plan, progress=report)
    console().print(
        f"{name} is at {folder}. Check it: maskclip-bench data check {name}", markup=False
    )


def check(
    names: Annotated[list[str], typer.Argument(help="Data sets, or all.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A JSON file for the report.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Examine data sets before they are measured; the exit code is 3 if something is wrong.

    Looks at the number of images against the published one, classes and their words, files that
    cannot be read, images that occur twice or in two splits, ImageNet's flat validation folder,
    COCO 2014 and 2017, values of masks, captions an image. Reads every file once.

    For example:

        maskclip-bench data check all

        maskclip-bench data check imagenet coco_captions --output report.json
    """
    from maskclip_bench.tasks.data_check import check_data
    from maskclip_bench.tasks.declaration import dataset_names, load_task_declaration

    opened = Workspace.open(workspace)
    chosen = dataset_names() if ALL in names else names
    screen = console()
    found: list[Diagnosis] = []
    for name in chosen:
        task = load_task_declaration(name)
        with bars() as report:
            diagnosis = check_data(task, opened, progress=report)
        found.append(diagnosis)
        if diagnosis.missing is None or ALL not in names or diagnosis.findings:
            _show(diagnosis, screen)
    absent = [item.dataset for item in found if item.missing is not None]
    if ALL in names and absent:
        screen.print(f"\nNot on this machine: {markup(', '.join(absent))}", soft_wrap=True)
    if output is not None:
        storage.write_json(output, [item.to_json() for item in found])
        screen.print(f"Wrote {output}", markup=False, soft_wrap=True)
    num_errors = sum(item.num_errors for item in found)
    num_absent = 0 if ALL in names else len(absent)
    screen.print(f"\n{len(found) - len(absent)} data sets examined, {num_errors} errors.")
    if num_errors or num_absent:
        raise typer.Exit(EXIT_DATA)


def _show(diagnosis: Diagnosis, screen: Console) -> None:
    screen.print(f"\n[bold]{markup(diagnosis.dataset)}[/]")
    if diagnosis.missing is not None:
        screen.print(f"  [red]missing[/] {markup(diagnosis.missing)}", soft_wrap=True)
    for finding in diagnosis.findings:
        split = f"{finding.split}: " if finding.split else ""
        screen.print(f"  {MARKS[finding.level]} {markup(split + finding.text)}", soft_wrap=True)


def show(
    name: Annotated[str, typer.Argument(help="demo, or a data set (see: data list).")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The PNG to write.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a contact sheet (PNG): images of each split with classes, captions, boxes, masks."""
    opened = Workspace.open(workspace)
    target = output or opened.root / f"{_file_name(name)}_contact_sheet.png"
    if name == DEMO:
        from maskclip_bench.data.demo import contact_sheet as demo_sheet

        demo_sheet(prepare_with_bar(opened), target)
    else:
        _sheet_of(name, opened, target)
    console().print(f"Wrote {target}", markup=False)


def _sheet_of(name: str, workspace: Workspace, target: Path) -> None:
    """The contact sheet of a declared data set, or of one of the hub.

    Raises:
        DataError: It is not on this machine.
    """
    from maskclip_bench.data.contact_sheet import contact_sheet
    from maskclip_bench.tasks.declaration import load_task_declaration, missing_data
    from maskclip_bench.tasks.protocols.base import open_split
    from maskclip_bench.tasks.protocols.prompts import class_names_of

    task = load_task_declaration(name)
    missing = missing_data(task, workspace)
    if missing is not None:
        raise DataError(f"{name}: {missing}")
    splits = {str(split): open_split(task, split, workspace) for split in task.splits}
    first = next(iter(splits.values()))
    words: list[str] = []
    if first.labels is not None:
        words = [aliases[0] for aliases in class_names_of(task, first)]
    contact_sheet(splits, target, names=words)


def _file_name(name: str) -> str:
    return name.replace(":", "_").replace("/", "_")
