"""`maskclip-bench list`, `table` and `path`: what there is, what was measured, where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as RichTable
from rich.text import Text

from maskclip_bench.cli.options import WorkspaceOption, console
from maskclip_bench.errors import ConfigError
from maskclip_bench.escaping import markup, one_line
from maskclip_bench.runtime import Workspace

list_app = typer.Typer(
    help="List what there is: backbones, tasks, suites, recipes, tables.", no_args_is_help=True
)


def _listing(*columns: str) -> RichTable:
    """An empty listing; its cells are `Text`, in which brackets are brackets."""
    view = RichTable(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        view.add_column(column, overflow="fold", no_wrap=index == 0)
    return view


def _add(view: RichTable, *cells: object) -> None:
    view.add_row(*(Text(one_line(cell)) for cell in cells))


@list_app.command("backbones")
def list_backbones(workspace: WorkspaceOption = None) -> None:
    """Rows: every declared model, and whether its weights are on this machine."""
    from maskclip_bench.backbones import load_backbone_declaration, weights_available
    from maskclip_bench.data_files import declarations

    place = Workspace.open(workspace)
    view = _listing("backbone", "name in tables", "world", "weights here")
    for name in declarations("backbones"):
        declaration = load_backbone_declaration(name)
        here = "yes" if weights_available(declaration, place, 0) else "no"
        _add(view, name, declaration.display_name, declaration.world, here)
    output = console()
    output.print(view)
    output.print("\nHow to get what is not here: maskclip-bench plan --suite all")


@list_app.command("tasks")
def list_tasks(workspace: WorkspaceOption = None) -> None:
    """Columns: every data set with the protocols it has."""
    from maskclip_bench.tasks import data_available, dataset_names, load_task_declaration

    place = Workspace.open(workspace)
    view = _listing("data set", "protocols", "world", "data here")
    for name in dataset_names():
        task = load_task_declaration(name)
        here = "yes" if data_available(task, place) else "no"
        _add(view, name, ", ".join(task.protocols), task.world, here)
    output = console()
    output.print(view)
    output.print("\nA task is protocol/data set, e.g. zero_shot_classification/demo_objects.")


@list_app.command("suites")
def list_suites() -> None:
    """Suites: named rows x columns for `maskclip-bench run --suite NAME`."""
    from maskclip_bench.tasks.suite import load_suite, suite_names

    view = _listing("suite", "description")
    for name in suite_names():
        _add(view, name, load_suite(name).description)
    console().print(view)


@list_app.command("recipes")
def list_recipes() -> None:
    """Recipes for `maskclip-bench pretrain RECIPE`."""
    from maskclip_bench.pretrain.recipe import load_recipe, recipe_names

    view = _listing("recipe", "method", "vision", "world", "image-text pairs")
    for name in recipe_names():
        recipe = load_recipe(name)
        _add(
            view,
            name,
            recipe.method.name,
            recipe.model.vision.timm_model,
            recipe.world,
            recipe.length,
        )
    console().print(view)


@list_app.command("tables")
def list_tables() -> None:
    """Tables for `maskclip-bench table NAME`."""
    from maskclip_bench.results.tables import load_table, table_names

    view = _listing("table", "world", "title")
    for name in table_names():
        declaration = load_table(name)
        _add(view, name, declaration.world, declaration.title)
    console().print(view)


def table(
    name: Annotated[str, typer.Argument(help="A table; see: maskclip-bench list tables")],
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            help="none, or paper: published numbers with their sources, marked as such.",
        ),
    ] = "none",
    chance: Annotated[bool, typer.Option("--chance", help="Add the score of guessing.")] = False,
    records: Annotated[
        Path | None, typer.Option("--records", help="Folder of records; default: the workspace's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write .md, .csv and .png there.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Show a table in the paper's manner: best in bold, differences to the baseline, intervals.

    For example:

        maskclip-bench table demo --chance

        maskclip-bench table imagenet --reference paper
    """
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.results.reference import load_references
    from maskclip_bench.results.tables import build_table, load_table, to_terminal, write_table

    if reference not in ("none", "paper"):
        raise ConfigError(f"--reference {reference!r} is not known. Use none or paper.")
    store = RecordStore(records or Workspace.open(workspace).records)
    references = load_references() if reference == "paper" else ()
    built = build_table(load_table(name), store, references=references, chance=chance)
    view = console()
    if built.is_empty:
        view.print(
            f"Table {markup(repr(name))} has no measured cell in {markup(store.root)}. Measure "
            "some with `maskclip-bench run --suite all`, or show the published numbers with "
            "`--reference paper`."
        )
        return
    view.print(to_terminal(built))
    if output is not None:
        for path in write_table(built, output, name):
            view.print(f"[dim]wrote {markup(path)}[/]", soft_wrap=True)


def path(
    file: Annotated[
        str,
        typer.Argument(help="A shipped file, e.g. configs/pretrain/demo/clip.yaml; or a folder."),
    ],
) -> None:
    """Print where a shipped file lies, in a checkout or an installed wheel."""
    from maskclip_bench.data_files import config_file

    print(config_file(file))
