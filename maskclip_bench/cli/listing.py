"""`maskclip-bench list`: what there is. Only YAML is read, so every listing answers at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import typer
from rich.table import Table as RichTable

from maskclip_bench.cli.options import WorkspaceOption, add_line, console
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.escaping import markup
from maskclip_bench.runtime import Workspace

T = TypeVar("T")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]

list_app = typer.Typer(
    help="List what there is: backbones, tasks, suites, recipes, tables.", no_args_is_help=True
)


@dataclass
class Listing:
    """A table of names; what cannot be read is shown as broken, with its error below.

    Its cells are `Text`, in which brackets are brackets.
    """

    columns: tuple[str, ...]
    _rows: list[tuple[object, ...]] = field(default_factory=list)
    _errors: list[MaskCLIPBenchError] = field(default_factory=list)

    def fill(
        self, names: Iterable[str], read: Callable[[str], T], row: Callable[[T], tuple[object, ...]]
    ) -> None:
        """Add a line for each name: the name, and what `row` makes of what `read` returns."""
        for name in names:
            try:
                self._rows.append((name, *row(read(name))))
            except MaskCLIPBenchError as error:
                self._rows.append((name, "broken, see below"))
                self._errors.append(error)

    def put_first(self, column: int, value: object) -> None:
        """Move the lines with a value in a column to the top; otherwise the order stays."""
        self._rows.sort(key=lambda cells: cells[column : column + 1] != (value,))

    def show(self, note: str = "", *, as_json: bool = False) -> None:
        """Print the table, the errors, and a note; or a JSON list of {column: value}."""
        if as_json:
            names = [column.replace(" ", "_") for column in self.columns]
            lines = [dict(zip(names, cells, strict=False)) for cells in self._rows]
            print(json.dumps(lines, indent=2))
            return
        view = RichTable(box=None, pad_edge=False)
        for index, column in enumerate(self.columns):
            view.add_column(column, overflow="fold", no_wrap=index == 0)
        for cells in self._rows:
            add_line(view, *cells)
        output = console()
        output.print(view)
        for error in self._errors:
            output.print(f"\n[red]broken:[/] {markup(error)}", soft_wrap=True)
        if note:
            output.print(f"\n{markup(note)}", soft_wrap=True)


@list_app.command("backbones")
def list_backbones(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Look into the caches of open_clip and timm, too; imports them (some seconds).",
        ),
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Rows: every declared model, and whether its weights are on this machine."""
    from maskclip_bench.backbones import (
        BackboneDeclaration,
        backbone_names,
        load_backbone_declaration,
        weights_available,
    )

    opened = Workspace.open(workspace)

    def row(declaration: BackboneDeclaration) -> tuple[str, str, str]:
        if declaration.downloads_by_itself and not check:
            here = "download"
        else:
            here = "yes" if weights_available(declaration, opened, 0) else "no"
        return declaration.display_name, declaration.world, here

    listing = Listing(("backbone", "name in tables", "world", "weights here"))
    listing.fill(backbone_names(), load_backbone_declaration, row)
    listing.show(
        "download: its library fetches it when `run --backbone` names it; --check looks whether "
        "that was done.\nHow to get the others: maskclip-bench plan --suite all --cells\n"
        "Any other model, without a file: -b timm:NAME, -b open_clip:ARCH/TAG, -b hf:ORG/NAME, "
        "-b path/to/folder",
        as_json=as_json,
    )


@list_app.command("tasks")
def list_tasks(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Columns: every data set with the protocols it has."""
    from maskclip_bench.tasks import (
        TaskDeclaration,
        data_available,
        dataset_names,
        load_task_declaration,
    )

    opened = Workspace.open(workspace)

    def row(task: TaskDeclaration) -> tuple[str, str, str]:
        here = "yes" if data_available(task, opened) else "no"
        return ", ".join(task.protocols), task.world, here

    listing = Listing(("data set", "protocols", "world", "data here"))
    listing.fill(dataset_names(), load_task_declaration, row)
    listing.show(
        "A task is protocol/data set, e.g. zero_shot_classification/demo_objects.", as_json=as_json
    )


@list_app.command("suites")
def list_suites(as_json: JsonOption = False) -> None:
    """Suites: named rows x columns for `maskclip-bench run --suite NAME`."""
    from maskclip_bench.tasks.suite import load_suite, suite_names

    listing = Listing(("suite", "description"))
    listing.fill(suite_names(), load_suite, lambda suite: (suite.description,))
    listing.show(as_json=as_json)


@list_app.command("recipes")
def list_recipes(as_json: JsonOption = False) -> None:
    """Recipes for `maskclip-bench pretrain RECIPE`."""
    from maskclip_bench.pretrain.recipe_summary import recipe_names, recipe_summary

    listing = Listing(("recipe", "method", "vision", "world", "image-text pairs"))
    listing.fill(
        recipe_names(),
        recipe_summary,
        lambda recipe: (
            recipe.method.name,
            recipe.model.vision.timm_model,
            recipe.world,
            recipe.length,
        ),
    )
    listing.show(as_json=as_json)


@list_app.command("tables")
def list_tables(as_json: JsonOption = False) -> None:
    """Tables for `maskclip-bench table NAME`."""
    from maskclip_bench.results.table_catalogue import load_table, table_names

    listing = Listing(("table", "world", "title"))
    listing.fill(table_names(), load_table, lambda table: (table.world, table.title))
    listing.show(as_json=as_json)
